{{/* Who asks, in CEL. The operator: the chart knows its account. */}}
{{- define "conme.cel.operator" -}}
request.userInfo.username == 'system:serviceaccount:{{ .Release.Namespace }}:{{ include "conme.serviceAccount" . }}'
{{- end }}

{{/* The cluster itself: its control plane, its nodes, and the service accounts of the namespaces that are its own. */}}
{{- define "conme.cel.cluster" -}}
(request.userInfo.username in ['system:apiserver', 'system:kube-controller-manager', 'system:kube-scheduler'] || request.userInfo.?groups.orValue([]).exists(g, g in ['system:nodes'{{ range .Values.policies.controllers }}, 'system:serviceaccounts:{{ . }}'{{ end }}]))
{{- end }}

{{/* The SAD: whoever may declare a Comune. No list of people to keep beside the roles. Never the operator, whatever
rights it is given. */}}
{{- define "conme.cel.sad" -}}
(!({{ include "conme.cel.operator" . }}) && authorizer.group('conme.venis.it').resource('comuni').check('create').allowed())
{{- end }}

{{/* Everybody but these three: people and service accounts of the municipalities, and whoever was given rights by mistake. */}}
{{- define "conme.cel.others" -}}
!({{ include "conme.cel.operator" . }} || {{ include "conme.cel.cluster" . }} || {{ include "conme.cel.sad" . }})
{{- end }}

{{/* A list of texts in CEL. */}}
{{- define "conme.cel.texts" -}}
[{{ range $index, $text := . }}{{ if $index }}, {{ end }}'{{ $text }}'{{ end }}]
{{- end }}

{{/* Only in namespaces of municipalities. The label itself is guarded by conme-namespace-marks. */}}
{{- define "conme.inComuni" -}}
namespaceSelector:
  matchExpressions:
    - {key: conme.venis.it/comune, operator: Exists}
{{- end }}

{{/* Head of a policy, with its binding. Arguments: the root, the name, what it is for. */}}
{{- define "conme.policy" -}}
{{- $root := index . 0 }}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: {{ index . 1 }}
  labels:
    {{- include "conme.labels" $root | nindent 4 }}
spec:
  policyName: {{ index . 1 }}
  validationActions: [Deny]
---
# {{ index . 2 }}
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata:
  name: {{ index . 1 }}
  labels:
    {{- include "conme.labels" $root | nindent 4 }}
  annotations:
    conme.venis.it/description: {{ index . 2 | quote }}
{{- end }}

{{/* The pod template of an object of any kind that holds pods, in CEL. dyn, because each kind has it elsewhere. */}}
{{- define "conme.cel.template" -}}
(request.resource.resource == 'pods' ? {'spec': dyn({{ . }}).spec} : request.resource.resource == 'podtemplates' ? dyn({{ . }}).?template.orValue({}) : request.resource.resource == 'cronjobs' ? dyn({{ . }}).spec.jobTemplate.spec.template : dyn({{ . }}).spec.?template.orValue({}))
{{- end }}
