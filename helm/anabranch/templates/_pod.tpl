{{/* What pods have: environment, files, security. Workers and the topics' job share it. */}}

{{/* The environment of everything that talks to Kafka. */}}
{{- define "anabranch.kafkaEnv" -}}
{{- $kafka := .Values.kafka -}}
- name: ANABRANCH_BOOTSTRAP
  value: {{ include "anabranch.bootstrap" . | quote }}
{{- with $kafka.namespace }}
- name: ANABRANCH_NAMESPACE
  value: {{ . | quote }}
{{- end }}
- name: ANABRANCH_SECURITY_PROTOCOL
  value: {{ $kafka.securityProtocol }}
- name: ANABRANCH_PARTITIONS
  value: {{ .Values.topics.partitions | int | quote }}
- name: ANABRANCH_REPLICATION_FACTOR
  value: {{ .Values.topics.replicationFactor | int | quote }}
{{- if include "anabranch.usesSasl" . }}
{{- with $kafka.sasl.mechanism }}
- name: ANABRANCH_SASL_MECHANISM
  value: {{ . }}
{{- end }}
{{- if eq $kafka.sasl.mechanism "OAUTHBEARER" }}
- name: ANABRANCH_SASL_OAUTH_TOKEN_URL
  value: {{ required "kafka.sasl.oauth.tokenUrl is missing: OAUTHBEARER needs the token endpoint of your provider" $kafka.sasl.oauth.tokenUrl | quote }}
{{- with $kafka.sasl.oauth.scope }}
- name: ANABRANCH_SASL_OAUTH_SCOPE
  value: {{ . | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- if and (include "anabranch.usesTls" .) $kafka.tls.existingSecret }}
{{- with $kafka.tls.caKey }}
- name: ANABRANCH_SSL_CAFILE
  value: {{ printf "/etc/anabranch/tls/%s" . }}
{{- end }}
{{- with $kafka.tls.certKey }}
- name: ANABRANCH_SSL_CERTFILE
  value: {{ printf "/etc/anabranch/tls/%s" . }}
{{- end }}
{{- with $kafka.tls.keyKey }}
- name: ANABRANCH_SSL_KEYFILE
  value: {{ printf "/etc/anabranch/tls/%s" . }}
{{- end }}
{{- with $kafka.tls.keyPasswordKey }}
- name: ANABRANCH_SSL_PASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ $kafka.tls.existingSecret }}
      key: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Who it is to Kafka: a dict of `root` and the name of the `secret`. Each role may have a user of its own. */}}
{{- define "anabranch.saslEnv" -}}
{{- $sasl := .root.Values.kafka.sasl -}}
{{- $oauth := eq $sasl.mechanism "OAUTHBEARER" -}}
{{- if and (include "anabranch.usesSasl" .root) .secret }}
- name: {{ ternary "ANABRANCH_SASL_OAUTH_CLIENT_ID" "ANABRANCH_SASL_USERNAME" $oauth }}
  valueFrom:
    secretKeyRef:
      name: {{ .secret }}
      key: {{ $sasl.usernameKey }}
- name: {{ ternary "ANABRANCH_SASL_OAUTH_CLIENT_SECRET" "ANABRANCH_SASL_PASSWORD" $oauth }}
  valueFrom:
    secretKeyRef:
      name: {{ .secret }}
      key: {{ $sasl.passwordKey }}
{{- end }}
{{- end -}}

{{/* What a worker's environment has beside that; the provider's key is for agents alone. */}}
{{- define "anabranch.workerEnv" -}}
- name: ANABRANCH_DRAIN_S
  value: {{ .pool.drainSeconds | int | quote }}
- name: ANABRANCH_HTTP_PORT
  value: {{ .root.Values.httpPort | int | quote }}
- name: ANABRANCH_LOG_LEVEL
  value: {{ .pool.logLevel }}
{{- with .root.Values.store.url }}
- name: ANABRANCH_STORE
  value: {{ . | quote }}
{{- end }}
{{- if .root.Values.sealing.keys }}
- name: ANABRANCH_KEYS
  value: {{ .root.Values.sealing.keys | quote }}
- name: ANABRANCH_KEYS_MASTER
  valueFrom:
    secretKeyRef:
      name: {{ required "sealing.existingSecret: is missing: the Secret with the master key that wraps the keys" .root.Values.sealing.existingSecret }}
      key: {{ .root.Values.sealing.masterKeyKey }}
{{- end }}
{{- if eq .pool.role "agent" }}
{{- with .root.Values.anthropic.existingSecret }}
- name: ANTHROPIC_API_KEY
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: {{ $.root.Values.anthropic.apiKeyKey }}
{{- end }}
{{- with .root.Values.signing.existingSecret }}
- name: ANABRANCH_SIGNING_KEYS
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: {{ $.root.Values.signing.keysKey }}
{{- end }}
{{- with .root.Values.anthropic.baseUrl }}
- name: ANTHROPIC_BASE_URL
  value: {{ . | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/*
The environment of a container: its `own` as YAML, and what values add, `extra`, of which the last word counts. Two variables
of one name are one too many for Kubernetes, and would let a drain outlast its grace period. `who` says whose they are.
Tools write to HOME and to temporary files; nothing else of the file system can be written to.
*/}}
{{- define "anabranch.env" -}}
{{- $named := dict "HOME" (dict "name" "HOME" "value" "/tmp") -}}
{{- $order := list "HOME" -}}
{{- $own := dict -}}
{{- range .own | fromYamlArray }}{{ $_ := set $own .name true }}{{ end -}}
{{- range .extra -}}
  {{- if hasKey $own .name -}}
    {{- fail (printf "%s: extraEnv has %s, which the chart sets itself: leave it out, and use the chart's own value (drainSeconds, kafka, store, ...)" $.who .name) -}}
  {{- end -}}
  {{- $order = append (without $order .name) .name -}}
  {{- $_ := set $named .name . -}}
{{- end -}}
{{ .own | trim }}
{{- range $order }}
{{ list (get $named .) | toYaml }}
{{- end }}
{{- end -}}

{{- define "anabranch.mounts" -}}
- name: tmp
  mountPath: /tmp
{{- if .Values.settings }}
- name: settings
  mountPath: /etc/anabranch/settings
  readOnly: true
{{- end }}
{{- if and (include "anabranch.usesTls" .) .Values.kafka.tls.existingSecret }}
- name: kafka-tls
  mountPath: /etc/anabranch/tls
  readOnly: true
{{- end }}
{{- end -}}

{{/* `settings` names the ConfigMap, for the job has one of its own: hooks run before everything else is there. */}}
{{- define "anabranch.volumes" -}}
- name: tmp
  emptyDir:
    sizeLimit: {{ .tmpSizeLimit }}
{{- if .root.Values.settings }}
- name: settings
  configMap:
    name: {{ .settings }}
{{- end }}
{{- if and (include "anabranch.usesTls" .root) .root.Values.kafka.tls.existingSecret }}
- name: kafka-tls
  secret:
    secretName: {{ .root.Values.kafka.tls.existingSecret }}
    defaultMode: 0440
{{- end }}
{{- end -}}

{{- define "anabranch.settingsArgs" -}}
{{- if .Values.settings }}
- --config
- /etc/anabranch/settings/settings.toml
{{- end }}
{{- end -}}

{{- define "anabranch.probe" -}}
httpGet:
  path: {{ .path }}
  port: http
{{ toYaml .probe }}
{{- end -}}

{{- define "anabranch.spread" -}}
{{- if .pool.topologySpreadConstraints -}}
{{- toYaml .pool.topologySpreadConstraints -}}
{{- else if .pool.spread.enabled -}}
{{- range .pool.spread.topologyKeys }}
- topologyKey: {{ . }}
  maxSkew: {{ $.pool.spread.maxSkew | int }}
  whenUnsatisfiable: {{ $.pool.spread.whenUnsatisfiable }}
  labelSelector:
    matchLabels:
      {{- include "anabranch.poolSelector" $ | nindent 6 }}
{{- end }}
{{- end -}}
{{- end -}}

{{/* How a pod is placed: the same for all pods of a pool. */}}
{{- define "anabranch.placement" -}}
{{- with .pool.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .pool.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .pool.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with include "anabranch.spread" . | trim }}
topologySpreadConstraints:
  {{- . | nindent 2 }}
{{- end }}
{{- with .pool.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .pool.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- end -}}

{{- define "anabranch.container" -}}
{{- $root := .root -}}
{{- $pool := .pool -}}
name: worker
image: {{ include "anabranch.image" $root | quote }}
imagePullPolicy: {{ $root.Values.image.pullPolicy }}
{{- with $pool.command }}
command:
  {{- toYaml . | nindent 2 }}
{{- end }}
args:
  - worker
  - {{ $pool.role }}
  - {{ include "anabranch.app" $root | quote }}
  {{- if eq $pool.role "tool" }}
  - --queue
  - {{ $pool.queue | quote }}
  {{- end }}
  {{- with include "anabranch.settingsArgs" $root | trim }}
  {{- . | nindent 2 }}
  {{- end }}
env:
  {{- $secret := $pool.saslSecret | default $root.Values.kafka.sasl.existingSecret }}
  {{- $sasl := include "anabranch.saslEnv" (dict "root" $root "secret" $secret) }}
  {{- $own := printf "%s\n%s\n%s" (include "anabranch.kafkaEnv" $root) $sasl (include "anabranch.workerEnv" .) }}
  {{- include "anabranch.env" (dict "who" $pool.component "own" $own "extra" $pool.extraEnv) | nindent 2 }}
{{- with $pool.extraEnvFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
ports:
  - name: http
    containerPort: {{ $root.Values.httpPort | int }}
    protocol: TCP
startupProbe:
  {{- include "anabranch.probe" (dict "path" "/startupz" "probe" $pool.probes.startup) | nindent 2 }}
livenessProbe:
  {{- include "anabranch.probe" (dict "path" "/livez" "probe" $pool.probes.liveness) | nindent 2 }}
readinessProbe:
  {{- include "anabranch.probe" (dict "path" "/readyz" "probe" $pool.probes.readiness) | nindent 2 }}
{{- with $pool.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml $pool.securityContext | nindent 2 }}
volumeMounts:
  {{- include "anabranch.mounts" $root | nindent 2 }}
  {{- with $pool.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}
