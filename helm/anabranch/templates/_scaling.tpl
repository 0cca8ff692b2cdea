{{/*
What a pool scales on. Agents: requests that wait while their worker has no room, and how full the room is. Tools: the age
of the oldest call that waits, and how many places are in use. The second keeps what the first has asked for: without it
a fleet that has caught up would be taken down at once. tests check each query against the code's metrics.
*/}}

{{- define "anabranch.query.lag" -}}
{{- $s := include "anabranch.series" . -}}
sum(anabranch_admission_lag_records{ {{- $s -}} } * on (instance) anabranch_admission_held{ {{- $s -}} ,reason="bytes"})
{{- end -}}

{{- define "anabranch.query.room" -}}
{{- $s := include "anabranch.series" . -}}
sum(anabranch_open_bytes{ {{- $s -}} }) / avg(anabranch_open_bytes_max{ {{- $s -}} })
{{- end -}}

{{- define "anabranch.query.age" -}}
max(anabranch_oldest_waiting_call_seconds{ {{- include "anabranch.series" . -}} ,queue={{ .pool.queue | quote }}})
{{- end -}}

{{- define "anabranch.query.places" -}}
{{- $s := printf "%s,queue=%q" (include "anabranch.series" .) .pool.queue -}}
sum(anabranch_tool_slots_used{ {{- $s -}} }) / avg(anabranch_tool_slots{ {{- $s -}} })
{{- end -}}

{{- define "anabranch.kedaPrometheus" -}}
{{- $prometheus := .root.Values.autoscaling.prometheus -}}
- type: prometheus
  name: {{ .name }}
  metricType: {{ .metricType }}
  metadata:
    serverAddress: {{ required "autoscaling.prometheus.serverAddress is missing: name your Prometheus, or say autoscaling.source: kafka" $prometheus.serverAddress | quote }}
    query: {{ .query | quote }}
    threshold: {{ .threshold | toString | quote }}
    {{- with $prometheus.authModes }}
    authModes: {{ . }}
    {{- end }}
  {{- with $prometheus.authenticationRef }}
  authenticationRef:
    name: {{ . }}
  {{- end }}
{{- end -}}

{{/* Of agents the lag of both lanes, each with a trigger: the larger one counts. */}}
{{- define "anabranch.kedaKafka" -}}
{{- $prefix := include "anabranch.kafkaNamespace" .root -}}
{{- if eq .pool.role "agent" -}}
{{- $group := printf "%s.agents" $prefix -}}
{{- include "anabranch.kedaLag" (merge (dict "name" "lag" "group" $group "topic" (printf "%s.agent.requests" $prefix)) .) }}
{{ include "anabranch.kedaLag" (merge (dict "name" "lag-bulk" "group" $group "topic" (printf "%s.agent.requests.bulk" $prefix)) .) }}
{{- else -}}
{{- include "anabranch.kedaLag" (merge (dict "name" "lag" "group" (printf "%s.tools.%s" $prefix .pool.queue) "topic" (printf "%s.tool.calls.%s" $prefix .pool.queue)) .) }}
{{- end -}}
{{- end -}}

{{- define "anabranch.kedaLag" -}}
- type: kafka
  name: {{ .name }}
  metricType: AverageValue
  metadata:
    bootstrapServers: {{ include "anabranch.bootstrap" .root | quote }}
    consumerGroup: {{ .group | quote }}
    topic: {{ .topic | quote }}
    lagThreshold: {{ .pool.scaling.lagRecords | int | quote }}
    offsetResetPolicy: earliest
    allowIdleConsumers: "false"
    {{- if include "anabranch.kedaSasl" .root }}
    sasl: {{ include "anabranch.kedaSasl" .root }}
    {{- end }}
    {{- if include "anabranch.usesTls" .root }}
    tls: enable
    {{- end }}
  {{- if include "anabranch.kedaSecrets" .root }}
  authenticationRef:
    name: {{ include "anabranch.fullname" .root }}-kafka
  {{- end }}
{{- end -}}

{{/* KEDA's name of the mechanism. */}}
{{- define "anabranch.kedaSasl" -}}
{{- if include "anabranch.usesSasl" . -}}
{{- $mechanism := default "PLAIN" .Values.kafka.sasl.mechanism -}}
{{- $names := dict "PLAIN" "plaintext" "SCRAM-SHA-256" "scram_sha256" "SCRAM-SHA-512" "scram_sha512" -}}
{{- if not (hasKey $names $mechanism) -}}
{{- fail (printf "autoscaling.source kafka cannot log in with %s here: use autoscaling.source prometheus, or make a ScaledObject of your own in extraObjects" $mechanism) -}}
{{- end -}}
{{- get $names $mechanism -}}
{{- end -}}
{{- end -}}

{{- define "anabranch.kedaSecrets" -}}
{{- if or (and (include "anabranch.usesSasl" .) .Values.kafka.sasl.existingSecret) (and (include "anabranch.usesTls" .) .Values.kafka.tls.existingSecret) }}true{{ end -}}
{{- end -}}

{{/* Whether any pool is scaled by KEDA. */}}
{{- define "anabranch.usesKeda" -}}
{{- range (include "anabranch.pools" . | fromJson).pools }}{{ if eq .scaling.mode "keda" }}true{{ end }}{{ end -}}
{{- end -}}
