//! The kinds of children that the operator makes.

use kube::core::{ApiResource, GroupVersionKind};

/// A kind of child. The order is the order in which lists of children are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Kind {
    Namespace,
    ResourceQuota,
    LimitRange,
    NetworkPolicy,
    RoleBinding,
    ServiceAccount,
    ConfigMap,
    PersistentVolumeClaim,
    Service,
    Deployment,
    HorizontalPodAutoscaler,
    PodDisruptionBudget,
    Ingress,
    Secret,
}

/// When an object may be written: everything of one wave before anything of the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Wave {
    /// Namespaces.
    Namespaces,
    /// What limits and isolates a namespace, and the operator's own rights in it.
    Guards,
    /// What people and services use: only in a namespace that is limited and isolated.
    Contents,
}

impl Kind {
    /// Every kind that is watched. Secrets are not: that would need the right to read them all.
    pub const ALL: [Self; 13] = [
        Self::Namespace,
        Self::ResourceQuota,
        Self::LimitRange,
        Self::NetworkPolicy,
        Self::RoleBinding,
        Self::ServiceAccount,
        Self::ConfigMap,
        Self::PersistentVolumeClaim,
        Self::Service,
        Self::Deployment,
        Self::HorizontalPodAutoscaler,
        Self::PodDisruptionBudget,
        Self::Ingress,
    ];

    /// API group; empty for the core group.
    pub fn group(self) -> &'static str {
        match self {
            Self::Namespace
            | Self::ResourceQuota
            | Self::LimitRange
            | Self::ServiceAccount
            | Self::ConfigMap
            | Self::PersistentVolumeClaim
            | Self::Secret
            | Self::Service => "",
            Self::NetworkPolicy | Self::Ingress => "networking.k8s.io",
            Self::RoleBinding => "rbac.authorization.k8s.io",
            Self::Deployment => "apps",
            Self::HorizontalPodAutoscaler => "autoscaling",
            Self::PodDisruptionBudget => "policy",
        }
    }

    /// API version within the group.
    pub fn version(self) -> &'static str {
        match self {
            Self::HorizontalPodAutoscaler => "v2",
            _ => "v1",
        }
    }

    /// `apiVersion` as it stands in a manifest.
    pub fn api_version(self) -> String {
        match self.group() {
            "" => self.version().to_owned(),
            group => format!("{group}/{}", self.version()),
        }
    }

    /// `kind` as it stands in a manifest.
    pub fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::ResourceQuota => "ResourceQuota",
            Self::LimitRange => "LimitRange",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::RoleBinding => "RoleBinding",
            Self::ServiceAccount => "ServiceAccount",
            Self::ConfigMap => "ConfigMap",
            Self::PersistentVolumeClaim => "PersistentVolumeClaim",
            Self::Service => "Service",
            Self::Deployment => "Deployment",
            Self::HorizontalPodAutoscaler => "HorizontalPodAutoscaler",
            Self::PodDisruptionBudget => "PodDisruptionBudget",
            Self::Ingress => "Ingress",
            Self::Secret => "Secret",
        }
    }

    /// Resource name in addresses and in RBAC rules.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Namespace => "namespaces",
            Self::ResourceQuota => "resourcequotas",
            Self::LimitRange => "limitranges",
            Self::NetworkPolicy => "networkpolicies",
            Self::RoleBinding => "rolebindings",
            Self::ServiceAccount => "serviceaccounts",
            Self::ConfigMap => "configmaps",
            Self::PersistentVolumeClaim => "persistentvolumeclaims",
            Self::Service => "services",
            Self::Deployment => "deployments",
            Self::HorizontalPodAutoscaler => "horizontalpodautoscalers",
            Self::PodDisruptionBudget => "poddisruptionbudgets",
            Self::Ingress => "ingresses",
            Self::Secret => "secrets",
        }
    }

    /// For the generic client.
    pub fn api_resource(self) -> ApiResource {
        let gvk = GroupVersionKind::gvk(self.group(), self.version(), self.name());
        ApiResource::from_gvk_with_plural(&gvk, self.plural())
    }

    /// False for what may hold data of an administration: it is never deleted with its declaration.
    pub fn may_be_pruned(self) -> bool {
        !matches!(self, Self::Namespace | Self::PersistentVolumeClaim | Self::Secret)
    }

    /// True where the operator writes with rights that it holds in the whole cluster; elsewhere it writes with the
    /// rights that it binds to itself in each namespace.
    pub fn is_guard(self) -> bool {
        matches!(
            self,
            Self::Namespace
                | Self::ResourceQuota
                | Self::LimitRange
                | Self::NetworkPolicy
                | Self::RoleBinding
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_lists_every_kind_but_secrets_once_in_order() {
        assert!(Kind::ALL.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(Kind::ALL.len(), Kind::Secret as usize);
    }
}
