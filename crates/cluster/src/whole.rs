//! Objects as the API server tells them, read once.

use std::borrow::Cow;

use conme_blueprint::Kind;
use kube::{
    Resource,
    api::{ApiResource, DynamicObject, ObjectMeta},
};
use serde::{Deserialize, Deserializer, de::Error};
use serde_json::{Value, value::RawValue};

/// An object of any kind, with all its fields.
///
/// [`DynamicObject`] would read it three times: into a buffer, since its parts are flattened, then its metadata into
/// their structure, and that back into a value, `managedFields` included, which are most of many objects.
#[derive(Clone, Debug)]
pub(crate) struct Object<B> {
    /// Its version, which is all that a watch asks of an object.
    meta: ObjectMeta,
    body: B,
}

/// One that has been read.
pub(crate) type Whole = Object<Value>;

/// One that is still text. A list comes in pages: read as a whole, each takes ten times the memory of its text, in
/// thousands of pieces, and to get and give those back is a third of the work of a start.
pub(crate) type Unread = Object<Box<RawValue>>;

/// What is read of an object's text at once.
#[derive(Deserialize)]
struct Head {
    metadata: HeadMeta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct HeadMeta {
    #[serde(default)]
    resource_version: Option<String>,
}

impl<B> Object<B> {
    fn new(resource_version: Option<String>, body: B) -> Self {
        Self { meta: ObjectMeta { resource_version, ..ObjectMeta::default() }, body }
    }
}

impl Whole {
    /// The object as it stands in a manifest. In lists the API server leaves `apiVersion` and `kind` out.
    pub fn into_value(mut self, kind: Kind) -> Value {
        self.body["apiVersion"] = kind.api_version().into();
        self.body["kind"] = kind.name().into();
        self.body
    }
}

impl Unread {
    /// Reads the rest.
    ///
    /// # Errors
    /// When something in it cannot be read, as a number beyond all numbers.
    pub fn read(&self) -> serde_json::Result<Whole> {
        serde_json::from_str(self.body.get())
    }
}

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let body = Value::deserialize(deserializer)?;
        if !body.is_object() {
            return Err(D::Error::custom("it is no object"));
        }
        let version = body["metadata"]["resourceVersion"].as_str().map(str::to_owned);
        Ok(Self::new(version, body))
    }
}

impl<'de> Deserialize<'de> for Unread {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let body = Box::<RawValue>::deserialize(deserializer)?;
        if !body.get().starts_with('{') {
            return Err(D::Error::custom("it is no object"));
        }
        let head: Head = serde_json::from_str(body.get()).map_err(D::Error::custom)?;
        Ok(Self::new(head.metadata.resource_version, body))
    }
}

impl<B> Resource for Object<B> {
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
    use serde::de::DeserializeOwned;
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

    fn from_lists_and_watches<B>(into_value: impl Fn(Object<B>) -> Value)
    where
        Object<B>: DeserializeOwned + Clone,
    {
        let list = json!({"metadata": {"resourceVersion": "9"}, "items": [object()]}).to_string();
        let list: ObjectList<Object<B>> = serde_json::from_str(&list).unwrap();
        // In this order, in which the API server writes the two.
        let event = format!(r#"{{"type": "ADDED", "object": {}}}"#, object());
        let Ok(WatchEvent::Added(told)) = serde_json::from_str::<WatchEvent<Object<B>>>(&event) else {
            panic!("{event}");
        };
        let mut expected = object();
        (expected["apiVersion"], expected["kind"]) = ("v1".into(), "ConfigMap".into());
        for object in list.items.into_iter().chain([told]) {
            assert_eq!(object.resource_version().as_deref(), Some("7"));
            assert_eq!(into_value(object), expected);
        }
    }

    #[test]
    fn an_object_comes_from_lists_and_watches_whole() {
        from_lists_and_watches(|whole: Whole| whole.into_value(Kind::ConfigMap));
        from_lists_and_watches(|unread: Unread| unread.read().unwrap().into_value(Kind::ConfigMap));
    }

    #[test]
    fn what_is_no_object_is_an_error() {
        for text in ["[]", "[{}]", "\"text\"", "null", "{"] {
            assert!(serde_json::from_str::<Whole>(text).is_err(), "{text}");
            assert!(serde_json::from_str::<Unread>(text).is_err(), "{text}");
        }
        let beyond = r#"{"metadata": {"resourceVersion": "7"}, "spec": 1e999}"#;
        assert!(serde_json::from_str::<Unread>(beyond).unwrap().read().is_err());
    }
}
