//! Objects as the API server tells them, read once.

use std::borrow::Cow;

use conme_blueprint::Kind;
use kube::{
    Resource,
    api::{ApiResource, DynamicObject, ObjectMeta},
};
use serde::{Deserialize, Deserializer, de::Error};
use serde_json::Value;

/// An object of any kind, whole.
///
/// [`DynamicObject`] would read it three times: into a buffer, since its parts are flattened, then its metadata into
/// their structure, and that back into a value, `managedFields` included, which are most of many objects.
#[derive(Clone, Debug)]
pub(crate) struct Whole {
    /// What a watch asks of an object, and nothing else: where it is, and its version.
    meta: ObjectMeta,
    value: Value,
}

impl Whole {
    /// The object as it stands in a manifest. In lists the API server leaves `apiVersion` and `kind` out.
    pub fn into_value(mut self, kind: Kind) -> Value {
        self.value["apiVersion"] = kind.api_version().into();
        self.value["kind"] = kind.name().into();
        self.value
    }
}

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        if !value.is_object() {
            return Err(D::Error::custom("it is no object"));
        }
        let metadata = &value["metadata"];
        let text = |key: &str| metadata[key].as_str().map(str::to_owned);
        let meta = ObjectMeta {
            name: text("name"),
            namespace: text("namespace"),
            resource_version: text("resourceVersion"),
            uid: text("uid"),
            ..ObjectMeta::default()
        };
        Ok(Self { meta, value })
    }
}

impl Resource for Whole {
    type DynamicType = ApiResource;
    type Scope = <DynamicObject as Resource>::Scope;

    fn kind(resource: &ApiResource) -> Cow<'_, str> {
        DynamicObject::kind(resource)
    }

    fn group(resource: &ApiResource) -> Cow<'_, str> {
        DynamicObject::group(resource)
    }

    fn version(resource: &ApiResource) -> Cow<'_, str> {
        DynamicObject::version(resource)
    }

    fn plural(resource: &ApiResource) -> Cow<'_, str> {
        DynamicObject::plural(resource)
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

#[cfg(test)]
mod tests {
    use kube::{ResourceExt, api::ObjectList, core::WatchEvent};
    use serde_json::json;

    use super::*;

    fn object() -> Value {
        json!({
            "metadata": {
                "name": "reti", "namespace": "dolo-produzione", "resourceVersion": "7", "uid": "1-2",
                "managedFields": [{"manager": "conme", "fieldsV1": {"f:data": {}}}],
            },
            "data": {"unknown": [1, {"to": null}]},
        })
    }

    #[test]
    fn an_object_comes_from_lists_and_watches_whole() {
        let list = json!({"metadata": {"resourceVersion": "9"}, "items": [object()]}).to_string();
        let list: ObjectList<Whole> = serde_json::from_str(&list).unwrap();
        let event = json!({"type": "ADDED", "object": object()}).to_string();
        let Ok(WatchEvent::Added(told)) = serde_json::from_str::<WatchEvent<Whole>>(&event) else {
            panic!("{event}");
        };
        let mut expected = object();
        (expected["apiVersion"], expected["kind"]) = ("v1".into(), "ConfigMap".into());
        for whole in list.items.into_iter().chain([told]) {
            assert_eq!(whole.name_any(), "reti");
            assert_eq!(
                (whole.namespace().as_deref(), whole.uid().as_deref()),
                (Some("dolo-produzione"), Some("1-2"))
            );
            assert_eq!(whole.resource_version().as_deref(), Some("7"));
            assert_eq!(whole.into_value(Kind::ConfigMap), expected);
        }
    }

    #[test]
    fn what_is_no_object_is_an_error() {
        for text in ["[]", "\"text\"", "null", "{"] {
            assert!(serde_json::from_str::<Whole>(text).is_err(), "{text}");
        }
    }
}
