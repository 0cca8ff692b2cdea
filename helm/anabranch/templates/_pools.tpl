{{/* Pools: `agents` and each of `toolPools`, with what `defaults` says where they say nothing. */}}

{{/*
All pools as JSON: {"pools": [{name, component, role, queue, ...}]}. Maps are merged, the pool's own word wins; the lists
extraEnv, extraEnvFrom, extraVolumes, extraVolumeMounts and extraEgress are added up, other lists are replaced.
*/}}
{{- define "anabranch.pools" -}}
{{- include "anabranch.checkLabels" (dict "where" "commonLabels" "labels" .Values.commonLabels) -}}
{{- include "anabranch.checkSettings" .Values.settings -}}
{{- $pools := list -}}
{{- $root := . -}}
{{- if .Values.agents.enabled -}}
  {{- $own := omit .Values.agents "enabled" -}}
  {{- $given := dict "role" "agent" "component" "agents" "name" (include "anabranch.agents" .) "queue" "" -}}
  {{- $pools = append $pools (include "anabranch.pool" (dict "root" . "levels" (list .Values.defaults $own) "given" $given) | fromJson) -}}
{{- end -}}
{{- range $key := keys .Values.toolPools | sortAlpha -}}
  {{- $own := get $root.Values.toolPools $key -}}
  {{- $component := printf "tools-%s" $key -}}
  {{- $given := dict "role" "tool" "component" $component "name" (printf "%s-%s" (include "anabranch.fullname" $root) $component) -}}
  {{- $_ := set $given "queue" (default $key $own.queue) -}}
  {{- $levels := list $root.Values.defaults $root.Values.toolDefaults $own -}}
  {{- $pools = append $pools (include "anabranch.pool" (dict "root" $root "levels" $levels "given" $given) | fromJson) -}}
{{- end -}}
{{- dict "pools" $pools | toJson -}}
{{- end -}}

{{- define "anabranch.pool" -}}
{{- $lists := list "extraEnv" "extraEnvFrom" "extraVolumes" "extraVolumeMounts" "extraEgress" -}}
{{- $pool := dict -}}
{{- $sums := dict -}}
{{- range $level := .levels -}}
  {{- $pool = mergeOverwrite $pool (deepCopy $level) -}}
  {{- range $list := $lists -}}
    {{- $_ := set $sums $list (concat (default list (get $sums $list)) (default list (get $level $list))) -}}
  {{- end -}}
{{- end -}}
{{- $pool = mergeOverwrite $pool $sums .given -}}
{{- include "anabranch.checkPool" $pool -}}
{{- $drain := $pool.drainSeconds | int -}}
{{- $_ := set $pool "grace" (default (add $drain 20) $pool.terminationGracePeriodSeconds | int) -}}
{{- toJson $pool -}}
{{- end -}}

{{/* What the schema cannot say: sums, and what two values must have in common. */}}
{{- define "anabranch.checkPool" -}}
{{- $who := .component -}}
{{- include "anabranch.checkLabels" (dict "where" (printf "%s: podLabels" $who) "labels" .podLabels) -}}
{{- $least := add (.drainSeconds | int) 20 | int -}}
{{- if .terminationGracePeriodSeconds -}}
  {{- if lt (.terminationGracePeriodSeconds | int) $least -}}
    {{- fail (printf "%s: terminationGracePeriodSeconds is %v, and must be at least drainSeconds + 20 = %d: a worker ends itself 15 s after its drain, and what SIGKILL interrupts is done, and paid for, again" $who .terminationGracePeriodSeconds $least) -}}
  {{- end -}}
{{- end -}}
{{- if lt (.scaling.maxReplicas | int) (.scaling.minReplicas | int) -}}
  {{- fail (printf "%s: scaling.maxReplicas is %v, less than scaling.minReplicas %v" $who .scaling.maxReplicas .scaling.minReplicas) -}}
{{- end -}}
{{- if and (eq .role "agent") (ne .scaling.mode "none") (lt (.scaling.minReplicas | int) 1) -}}
  {{- fail "agents: scaling.minReplicas is 0, and open runs would stand still, for lag counts only requests that are not admitted: use at least 1" -}}
{{- end -}}
{{- $budget := .podDisruptionBudget -}}
{{- if and $budget.enabled (not (kindIs "invalid" $budget.minAvailable)) (not (kindIs "invalid" $budget.maxUnavailable)) -}}
  {{- if not (eq (toString $budget.maxUnavailable) "1") -}}
    {{- fail (printf "%s: podDisruptionBudget has minAvailable and maxUnavailable: Kubernetes takes one of them" $who) -}}
  {{- end -}}
{{- end -}}
{{- end -}}

{{/*
What `settings` may not hold: secrets, for they would stand in clear in a ConfigMap and in the release; and what the chart
tells workers by a variable, which wins. Each with the value that is meant for it.
*/}}
{{- define "anabranch.checkSettings" -}}
{{- $secrets := dict
  "kafka" (dict "sasl_password" "kafka.sasl.existingSecret" "sasl_oauth_client_secret" "kafka.sasl.existingSecret" "ssl_password" "kafka.tls.keyPasswordKey")
  "anthropic" (dict "api_key" "anthropic.existingSecret" "auth_token" "agents.extraEnv, as ANTHROPIC_AUTH_TOKEN from a Secret")
  "signing" (dict "keys" "signing.existingSecret")
  "sealing" (dict "keys_master" "sealing.existingSecret") -}}
{{- $variables := dict
  "kafka" (dict "bootstrap" "kafka.bootstrap" "security_protocol" "kafka.securityProtocol" "partitions" "topics.partitions" "replication_factor" "topics.replicationFactor")
  "worker" (dict "namespace" "kafka.namespace" "drain_s" "drainSeconds of defaults or of a pool" "http_port" "httpPort" "log_level" "logLevel of defaults or of a pool")
  "storage" (dict "store" "store.url")
  "sealing" (dict "keys" "sealing.keys") -}}
{{- range $section, $given := . -}}
  {{- range $name, $value := $given -}}
    {{- with get (get $secrets $section | default dict) $name -}}
      {{- fail (printf "settings.%s.%s is a secret, and would stand in clear in a ConfigMap: use %s" $section $name .) -}}
    {{- end -}}
    {{- with get (get $variables $section | default dict) $name -}}
      {{- fail (printf "settings.%s.%s would not count, for the chart says it to workers itself: use %s" $section $name .) -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- end -}}

{{- define "anabranch.poolSelector" -}}
{{ include "anabranch.selector" .root }}
app.kubernetes.io/component: {{ .pool.component }}
{{- end -}}

{{- define "anabranch.poolLabels" -}}
{{ include "anabranch.labels" .root }}
app.kubernetes.io/component: {{ .pool.component }}
{{- end -}}

{{- define "anabranch.podLabels" -}}
{{- mergeOverwrite (include "anabranch.poolLabels" . | fromYaml) .pool.podLabels | toYaml -}}
{{- end -}}

{{/* What picks this pool's series in Prometheus, and not those of a pool whose name goes on. Long names of pods are cut. */}}
{{- define "anabranch.series" -}}
{{- $prometheus := .root.Values.autoscaling.prometheus -}}
{{- printf "%s=%q,%s=~%q" $prometheus.namespaceLabel .root.Release.Namespace $prometheus.podLabel (printf "%s-[a-z0-9]+(-[a-z0-9]+)?" .pool.name) -}}
{{- with $prometheus.extraLabels }},{{ . }}{{ end -}}
{{- end -}}
