{{/* Names, labels and images: what all templates share. */}}

{{- define "anabranch.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* At most 28 characters, so that "-tools-" and a pool's name still fit into a label; what is cut gets a hash. */}}
{{- define "anabranch.fullname" -}}
{{- $name := include "anabranch.name" . -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- $full = default $full .Values.fullnameOverride -}}
{{- if gt (len $full) 28 -}}
{{- printf "%s-%s" ($full | trunc 21 | trimSuffix "-") (sha256sum $full | trunc 6) -}}
{{- else -}}
{{- $full | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "anabranch.agents" -}}{{ include "anabranch.fullname" . }}-agents{{- end -}}

{{- define "anabranch.selector" -}}
app.kubernetes.io/name: {{ include "anabranch.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{/* A dict of `labels` that are given, and `where`. Of two labels of one name the last would count, and selectors find nothing. */}}
{{- define "anabranch.checkLabels" -}}
{{- $own := list "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component" "app.kubernetes.io/version" "app.kubernetes.io/part-of" "app.kubernetes.io/managed-by" "helm.sh/chart" -}}
{{- range $name, $value := .labels -}}
  {{- if has $name $own -}}
    {{- fail (printf "%s has %s, which the chart sets itself, for its selectors to find its pods: leave it out, or take another label (nameOverride changes app.kubernetes.io/name)" $.where $name) -}}
  {{- end -}}
{{- end -}}
{{- end -}}

{{- define "anabranch.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "anabranch.selector" . }}
app.kubernetes.io/version: {{ include "anabranch.version" . | quote }}
app.kubernetes.io/part-of: anabranch
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* A dict of `root` and of labels that this object has beside, `more`: these win over commonLabels, and no key comes twice. */}}
{{- define "anabranch.labelsAnd" -}}
{{- mergeOverwrite (include "anabranch.labels" .root | fromYaml) .more | toYaml -}}
{{- end -}}

{{/* A label takes no more than these characters, and a tag may have others. */}}
{{- define "anabranch.version" -}}
{{- regexReplaceAll "[^A-Za-z0-9._-]" (default .Chart.AppVersion .Values.image.tag) "-" | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "anabranch.annotations" -}}
{{- with .Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "anabranch.image" -}}
{{- $image := .Values.image -}}
{{- $hint := "image.repository is missing: build an image FROM anabranch with your App in it (see the chart's README), and name it" -}}
{{- $repository := required $hint $image.repository -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (default .Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "anabranch.app" -}}
{{- required "app is missing: name your App as `anabranch worker agent` takes it, for example app: shop.app:app" .Values.app -}}
{{- end -}}

{{- define "anabranch.bootstrap" -}}
{{- required "kafka.bootstrap is missing: name your Kafka, for example kafka.bootstrap: kafka-bootstrap.kafka:9092" .Values.kafka.bootstrap -}}
{{- end -}}

{{/* The prefix of topics and groups, where the chart itself must know it. */}}
{{- define "anabranch.kafkaNamespace" -}}
{{- required "kafka.namespace is missing: topics.mode strimzi and autoscaling.source kafka need the names of topics, so say the App's namespace here" .Values.kafka.namespace -}}
{{- end -}}

{{- define "anabranch.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "anabranch.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "anabranch.usesTls" -}}{{- if hasSuffix "SSL" .Values.kafka.securityProtocol }}true{{ end -}}{{- end -}}
{{- define "anabranch.usesSasl" -}}{{- if hasPrefix "SASL" .Values.kafka.securityProtocol }}true{{ end -}}{{- end -}}
