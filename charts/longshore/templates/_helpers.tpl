{{- define "longshore.fullname" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "longshore.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "longshore.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "longshore.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "longshore.brokerSecret" -}}
{{- if .Values.broker.existingSecret }}{{ .Values.broker.existingSecret }}
{{- else if .Values.broker.url }}{{ include "longshore.fullname" . }}
{{- else }}{{ fail "set broker.url, or broker.existingSecret to the name of a Secret that holds it" }}{{ end }}
{{- end }}

{{- define "longshore.tokenSecret" -}}
{{- if .Values.auth.existingSecret }}{{ .Values.auth.existingSecret }}
{{- else if .Values.auth.token }}{{ include "longshore.fullname" . }}
{{- else }}{{ fail "set auth.token, or auth.existingSecret to the name of a Secret that holds it: the coordinator does not listen beyond loopback without one" }}{{ end }}
{{- end }}

{{- define "longshore.tokenKey" -}}
name: {{ include "longshore.tokenSecret" . }}
key: {{ if .Values.auth.existingSecret }}{{ .Values.auth.existingSecretKey }}{{ else }}token{{ end }}
{{- end }}

{{- /* Empty without one. */ -}}
{{- define "longshore.databaseSecret" -}}
{{- if .Values.database.existingSecret }}{{ .Values.database.existingSecret }}
{{- else if .Values.database.url }}{{ include "longshore.fullname" . }}
{{- else if gt (int .Values.coordinator.replicas) 1 }}{{ fail "coordinator.replicas above 1 needs database.url, or database.existingSecret to the name of a Secret that holds it: SQLite on one volume is one coordinator's" }}{{ end }}
{{- end }}

{{- /* What both processes are told, as environment: a secret never stands in an argv. */ -}}
{{- define "longshore.env" -}}
- name: LONGSHORE_AMQP
  valueFrom:
    secretKeyRef:
      name: {{ include "longshore.brokerSecret" . }}
      key: {{ if .Values.broker.existingSecret }}{{ .Values.broker.existingSecretKey }}{{ else }}url{{ end }}
- name: LONGSHORE_TOKEN
  valueFrom:
    secretKeyRef: {{- include "longshore.tokenKey" . | nindent 6 }}
- name: LONGSHORE_PREFIX
  value: {{ .Values.broker.prefix | quote }}
- name: LONGSHORE_LEASE
  value: {{ .Values.leaseSeconds | quote }}
- name: LONGSHORE_LOG_FORMAT
  value: json
{{- end }}

{{- define "longshore.annotations" -}}
{{- if .root.Values.metrics.annotations }}
prometheus.io/scrape: "true"
prometheus.io/path: /metrics
prometheus.io/port: {{ .port | quote }}
{{- end }}
{{- end }}
