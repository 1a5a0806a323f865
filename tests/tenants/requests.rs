//! Requests as they go over the wire, who asks them, and what was answered.

use anyhow::Result;
use http::{Method, Request as HttpRequest};
use kube::{Client, client::Body};
use serde_json::{Value, json};

/// The verbs that access to a resource is asked for with.
pub const VERBS: [&str; 8] =
    ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"];
/// Those of them that only look.
pub const READ: [&str; 3] = ["get", "list", "watch"];

/// One request. Whatever would change something is a dry run, unless it says otherwise.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: Method,
    pub uri: String,
    pub content_type: &'static str,
    pub body: Value,
    pub impersonate: Option<&'static str>,
}

const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";
const JSON_PATCH: &str = "application/json-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

fn with_parameter(uri: &str, parameter: &str) -> String {
    format!("{uri}{}{parameter}", if uri.contains('?') { '&' } else { '?' })
}

impl Request {
    fn new(method: Method, uri: String, content_type: &'static str, body: Value) -> Self {
        Self { method, uri, content_type, body, impersonate: None }
    }

    fn dry(method: Method, uri: &str, content_type: &'static str, body: Value) -> Self {
        Self::new(method, with_parameter(uri, "dryRun=All"), content_type, body)
    }

    pub fn get(uri: &str) -> Self {
        Self::new(Method::GET, uri.to_owned(), JSON, Value::Null)
    }

    pub fn create(list: &str, body: Value) -> Self {
        Self::dry(Method::POST, list, JSON, body)
    }

    /// A creation that is meant.
    pub fn really_create(list: &str, body: Value) -> Self {
        Self::new(Method::POST, list.to_owned(), JSON, body)
    }

    pub fn update(uri: &str, body: Value) -> Self {
        Self::dry(Method::PUT, uri, JSON, body)
    }

    pub fn merge(uri: &str, patch: Value) -> Self {
        Self::dry(Method::PATCH, uri, MERGE, patch)
    }

    pub fn json_patch(uri: &str, patch: Value) -> Self {
        Self::dry(Method::PATCH, uri, JSON_PATCH, patch)
    }

    /// Server-side apply under a name of its own, taking over what it names.
    pub fn apply(uri: &str, body: Value) -> Self {
        Self::dry(Method::PATCH, &with_parameter(uri, "fieldManager=somebody&force=true"), APPLY, body)
    }

    pub fn delete(uri: &str) -> Self {
        Self::dry(Method::DELETE, uri, JSON, Value::Null)
    }

    /// One of the eight verbs on a resource; objects need not exist, since rights are asked before.
    pub fn verb(verb: &str, list: &str, name: &str, head: Value) -> Self {
        let object = format!("{list}/{name}");
        match verb {
            "get" => Self::get(&object),
            "list" => Self::get(&with_parameter(list, "limit=1")),
            "watch" => Self::get(&with_parameter(
                list,
                "watch=true&timeoutSeconds=1&resourceVersion=0&labelSelector=nothing%3Dat-all",
            )),
            "create" => Self::create(list, head),
            "update" => Self::update(&object, head),
            "patch" => Self::merge(&object, json!({"metadata": {"labels": {"tried": "yes"}}})),
            "delete" => Self::delete(&object),
            "deletecollection" => Self::delete(&with_parameter(list, "labelSelector=nothing%3Dat-all")),
            other => panic!("{other}"),
        }
    }

    pub fn impersonating(mut self, user: &'static str) -> Self {
        self.impersonate = Some(user);
        self
    }

    /// Sends it as somebody.
    ///
    /// # Errors
    /// When there is no answer at all.
    pub async fn send(&self, client: &Client) -> Result<Answer> {
        let bytes = if self.body.is_null() { Vec::new() } else { serde_json::to_vec(&self.body)? };
        let mut request = HttpRequest::builder()
            .method(self.method.clone())
            .uri(&self.uri)
            .header("content-type", self.content_type);
        if let Some(user) = self.impersonate {
            request = request.header("impersonate-user", user);
        }
        let (head, body) = client.send(request.body(Body::from(bytes))?).await?.into_parts();
        let code = head.status.as_u16();
        if code == 200 && self.uri.contains("watch=true") {
            // It goes on: that it has begun is the answer.
            return Ok(Answer { code, message: String::new(), body: Value::Null });
        }
        let text = String::from_utf8_lossy(&body.collect_bytes().await?).into_owned();
        let body: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
        let message = body["message"].as_str().map_or(text, str::to_owned);
        Ok(Answer { code, message, body })
    }
}

/// What the API server has said.
#[derive(Clone, Debug)]
pub struct Answer {
    pub code: u16,
    pub message: String,
    pub body: Value,
}

impl Answer {
    pub fn passes(&self) -> bool {
        (200..300).contains(&self.code)
    }

    /// Refused for want of rights.
    pub fn lacks_rights(&self) -> bool {
        self.code == 403 && (self.message.contains("cannot ") || self.message.contains("attempting to grant"))
    }

    /// Refused by an admission policy of the chart.
    pub fn by_policy(&self, policy: &str) -> bool {
        self.code == 403 && self.message.contains(&format!("ValidatingAdmissionPolicy '{policy}"))
    }
}

/// Address of a list.
pub fn list(namespace: &str, api_version: &str, plural: &str) -> String {
    let root = if api_version.contains('/') { "/apis" } else { "/api" };
    if namespace.is_empty() {
        format!("{root}/{api_version}/{plural}")
    } else {
        format!("{root}/{api_version}/namespaces/{namespace}/{plural}")
    }
}
