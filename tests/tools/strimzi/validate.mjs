// Judges KafkaTopic resources, a JSON array on standard input, by the schemas of Strimzi's custom resources. Prints a line
// for each that is wrong, and ends with 1 if there is one. Called by tests/integration/test_chart_manifests.py.
import { readFileSync } from "node:fs";
import { KafkaTopic as V1 } from "@kubernetes-models/strimzi-kafka-operator/kafka.strimzi.io/v1/KafkaTopic";
import { KafkaTopic as V1Beta2 } from "@kubernetes-models/strimzi-kafka-operator/kafka.strimzi.io/v1beta2/KafkaTopic";

const kinds = { [V1.apiVersion]: V1, [V1Beta2.apiVersion]: V1Beta2 };

for (const topic of JSON.parse(readFileSync(0, "utf8"))) {
  try {
    new kinds[topic.apiVersion](topic).validate();
  } catch (error) {
    console.log(`${topic.metadata?.name}: ${error.message}`);
    process.exitCode = 1;
  }
}
