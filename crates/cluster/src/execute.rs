//! Carries out plans: every call of a wave at once, one wave after the other.

use std::{
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};

use conme_api::keys;
use conme_blueprint::{Action, ChildRef, Failure, Kind, Plan, child};
use futures::{StreamExt, stream::FuturesUnordered};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, Preconditions, PropagationPolicy, ValidationDirective},
    core::Status,
};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::{
    apply::apply,
    client::{Calls, words},
    gates::Gates,
    index::Index,
    whole::Whole,
};

/// How long the API server may take to learn of a RoleBinding that was just written.
const BINDING_DELAY: Duration = Duration::from_secs(5);

/// How often fields of others are taken over before the pass is given up and repeated later.
const TAKE_OVERS: usize = 6;

/// What came of a plan.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Calls that failed. Those of later waves were not made then.
    pub failures: Vec<Failure>,
    /// Children that somebody else had changed and that are as they should be again.
    pub repaired: Vec<ChildRef>,
    /// Number of calls that changed something.
    pub changed: usize,
}

/// Carries out plans with a bounded number of calls at once.
#[derive(Clone)]
pub struct Executor {
    client: Client,
    calls: Calls,
    slots: Arc<Semaphore>,
    gates: Arc<Gates>,
    index: Arc<Mutex<Index>>,
}

impl Executor {
    /// `slots` is the number of calls that may be under way at the same time.
    pub fn new(client: Client, calls: Calls, slots: usize, index: Arc<Mutex<Index>>) -> Self {
        Self { client, calls, slots: Arc::new(Semaphore::new(slots)), gates: Arc::default(), index }
    }

    /// Carries out a plan wave by wave. Within a wave every call is made, whatever becomes of the others; a wave
    /// with a failure is the last.
    pub async fn execute(&self, plan: &Plan) -> Outcome {
        let mut outcome = Outcome::default();
        for actions in plan.waves.values() {
            let mut calls: FuturesUnordered<_> = actions.iter().map(|action| self.act(action)).collect();
            while let Some((action, result)) = calls.next().await {
                match result {
                    Ok(()) => {
                        outcome.changed += 1;
                        if matches!(action, Action::Apply { repair: true, .. }) {
                            outcome.repaired.push(action.at().clone());
                        }
                    }
                    Err(error) => {
                        let message = words(&error);
                        outcome.failures.push(Failure { at: action.at().clone(), message });
                    }
                }
            }
            if !outcome.failures.is_empty() {
                break;
            }
        }
        outcome
    }

    async fn act<'a>(&self, action: &'a Action) -> (&'a Action, kube::Result<()>) {
        let result = match action {
            Action::Apply { desired, uid, repair } => {
                if *repair
                    && let Some(uid) = uid
                    && self.remove_additions(&desired.at, uid).await
                {
                    return (action, Ok(()));
                }
                let mut body = desired.body.clone();
                if let Some(uid) = uid {
                    // The API server then refuses to write to an object that has taken this one's place.
                    body["metadata"]["uid"] = json!(uid);
                }
                self.apply(&desired.at, &body, uid.is_some()).await
            }
            Action::Delete { at, uid } => self.delete(at, uid).await,
        };
        (action, result)
    }

    /// Makes a child right again with one call where somebody has only added something to it. Returns whether it is right.
    async fn remove_additions(&self, at: &ChildRef, uid: &str) -> bool {
        let Some(mut removal) = self.locked().removal(at) else { return false };
        removal["metadata"]["uid"] = json!(uid);
        // Whatever came of it otherwise, the apply that follows meets and tells, too.
        let Ok(object) = self.merge(at, &removal).await else { return false };
        let mut index = self.locked();
        let is_right = index.is_as_it_was(at.kind, &object);
        if is_right {
            index.written(at.kind, object);
        }
        is_right
    }

    /// Writes one object outside a plan: a Secret, which no watch shows.
    ///
    /// # Errors
    /// What the API server answers.
    pub async fn write(&self, at: &ChildRef, body: &Value, exists: bool) -> kube::Result<()> {
        self.apply(at, body, exists).await
    }

    /// Writes one object outside a plan over the very version of it that was read: whoever was overtaken by somebody
    /// else changes nothing.
    ///
    /// # Errors
    /// What the API server answers; code 409 when the object is another by now.
    pub async fn replace(&self, at: &ChildRef, body: &Value, read: &Value) -> kube::Result<()> {
        let mut guarded = body.clone();
        guarded["metadata"]["uid"] = read["metadata"]["uid"].clone();
        guarded["metadata"]["resourceVersion"] = read["metadata"]["resourceVersion"].clone();
        self.patient(at, || self.apply_once(at, &guarded)).await?;
        self.apply(at, body, true).await
    }

    /// Reads one object that no watch shows; None when it does not exist.
    ///
    /// # Errors
    /// What the API server answers.
    pub async fn read(&self, at: &ChildRef) -> kube::Result<Option<Value>> {
        let read = || async { self.call("GET", self.api(at).get_opt(&at.name)).await };
        Ok(self.patient(at, read).await?.map(|object| object.into_value(at.kind)))
    }

    /// Writes an object: creates it where none is known, else applies over the one that is known.
    async fn apply(&self, at: &ChildRef, body: &Value, exists: bool) -> kube::Result<()> {
        let object = if exists {
            match self.apply_over(at, body).await {
                // What somebody has fixed for ever can only be made anew. Never what may hold data.
                Err(kube::Error::Api(status)) if at.kind.may_be_pruned() && is_fixed(&status) => {
                    self.make_anew(at, body).await?
                }
                other => other?,
            }
        } else {
            match self.patient(at, || self.create(at, body)).await {
                Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {
                    self.reclaim(at, body).await?
                }
                other => other?,
            }
        };
        // The operator's own is one of them; after one of somebody else's a single call goes ahead in vain.
        if at.kind == Kind::RoleBinding && !exists {
            self.gates.close(&at.namespace);
        }
        if at.kind != Kind::Secret {
            self.locked().written(at.kind, object);
        }
        Ok(())
    }

    async fn apply_over(&self, at: &ChildRef, body: &Value) -> kube::Result<Value> {
        let mut object = match self.patient(at, || self.apply_once(at, body)).await {
            // What somebody added can make the whole invalid, as a second port of the same name: a merge replaces
            // lists as a whole. What can never be valid is refused once more, in the same words.
            Err(kube::Error::Api(status)) if status.code == 422 => {
                self.merge(at, body).await?;
                self.apply_once(at, body).await?
            }
            other => other?,
        };
        // Fields that somebody added beside the operator's own are not in conflict with what is applied and would
        // stay for ever. Most can be named and are gone with one call, whoever else writes to the object meanwhile.
        if let Some(removal) = child::removal_of_additions(at.kind, &object) {
            object = self.remove(at, object, removal).await?;
        }
        if self.locked().is_as_it_was(at.kind, &object) {
            return Ok(object);
        }
        // The rest, and what the operator owns twice, in two calls. More than once: the take-over can meet a newer version
        // of the object, as the cluster's own controllers write its status right after each change.
        for _ in 0..TAKE_OVERS {
            if !child::has_fields_to_take_over(at.kind, &object) {
                return Ok(object);
            }
            self.take_over(at, &object).await?;
            object = self.apply_once(at, body).await?;
        }
        if child::has_foreign_fields(at.kind, &object) {
            let message =
                "somebody else keeps writing to it; fields that are not Con.Me's could not be removed yet";
            return Err(kube::Error::Api(Box::new(Status::failure(message, "Conflict").with_code(409))));
        }
        Ok(object)
    }

    /// Deletes exactly the object that the body names by its unique id, and creates it again.
    async fn make_anew(&self, at: &ChildRef, body: &Value) -> kube::Result<Value> {
        let mut body = body.clone();
        let uid = body["metadata"].as_object_mut().and_then(|metadata| metadata.remove("uid"));
        self.delete(at, uid.as_ref().and_then(Value::as_str).unwrap_or_default()).await?;
        self.create(at, &body).await
    }

    /// An object of this name exists and no watch shows it: either somebody took the labels off one of the operator's
    /// own, or it is somebody else's, which is left alone.
    async fn reclaim(&self, at: &ChildRef, body: &Value) -> kube::Result<Value> {
        let live = self.read(at).await?.unwrap_or_default();
        if !child::is_of_operator(at.kind, &live) {
            let message =
                "it exists and is not Con.Me's; rename or delete it, or choose another name in the manifest";
            return Err(kube::Error::Api(Box::new(Status::failure(message, "Conflict").with_code(409))));
        }
        let mut body = body.clone();
        body["metadata"]["uid"] = live["metadata"]["uid"].clone();
        self.apply_over(at, &body).await
    }

    async fn create(&self, at: &ChildRef, body: &Value) -> kube::Result<Value> {
        let uri = format!(
            "{}?fieldManager={}&fieldValidation=Strict",
            self.api(at).resource_url(),
            keys::FIELD_MANAGER
        );
        let request = http::Request::post(uri)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(serde_json::to_vec(body).map_err(kube::Error::SerdeError)?)
            .map_err(kube::Error::HttpError)?;
        let created = self.call("POST", self.client.request::<Whole>(request)).await?;
        Ok(created.into_value(at.kind))
    }

    async fn apply_once(&self, at: &ChildRef, body: &Value) -> kube::Result<Value> {
        let params = PatchParams {
            force: true,
            field_manager: Some(keys::FIELD_MANAGER.into()),
            field_validation: Some(ValidationDirective::Strict),
            dry_run: false,
        };
        let object = self.call("PATCH", self.api(at).patch(&at.name, &params, &apply(body)?)).await?;
        Ok(object.into_value(at.kind))
    }

    async fn merge(&self, at: &ChildRef, body: &Value) -> kube::Result<Value> {
        let params =
            PatchParams { field_manager: Some(keys::FIELD_MANAGER.into()), ..PatchParams::default() };
        let api = self.api(at);
        let patch = Patch::Merge(body);
        self.call("PATCH", api.patch(&at.name, &params, &patch))
            .await
            .map(|object| object.into_value(at.kind))
    }

    /// Removes what a merge patch names from this very object. Returns the object as it is then; as it was when the API
    /// server will not have it without these fields.
    async fn remove(&self, at: &ChildRef, object: Value, mut removal: Value) -> kube::Result<Value> {
        removal["metadata"]["uid"] = object["metadata"]["uid"].clone();
        match self.merge(at, &removal).await {
            Ok(after) => Ok(after),
            Err(kube::Error::Api(status)) if matches!(status.code, 409 | 422) => Ok(object),
            Err(error) => Err(error),
        }
    }

    async fn take_over(&self, at: &ChildRef, object: &Value) -> kube::Result<()> {
        let operations = json!([
            {"op": "test", "path": "/metadata/resourceVersion", "value": object["metadata"]["resourceVersion"]},
            {"op": "replace", "path": "/metadata/managedFields", "value": child::take_over_fields(at.kind, object)},
        ]);
        let operations: json_patch::Patch =
            serde_json::from_value(operations).map_err(kube::Error::SerdeError)?;
        let params =
            PatchParams { field_manager: Some(keys::FIELD_MANAGER.into()), ..PatchParams::default() };
        let api = self.api(at);
        let patch = Patch::<Value>::Json(operations);
        match self.call("PATCH", api.patch(&at.name, &params, &patch)).await {
            Ok(_) => Ok(()),
            // Somebody was faster: the caller applies again and looks at what there is then.
            Err(kube::Error::Api(status)) if matches!(status.code, 409 | 422) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn delete(&self, at: &ChildRef, uid: &str) -> kube::Result<()> {
        let params = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Background),
            preconditions: Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None }),
            ..DeleteParams::default()
        };
        let deleted = self
            .patient(at, || async {
                self.call("DELETE", self.api(at).delete(&at.name, &params)).await.map(|_| ())
            })
            .await;
        match deleted {
            Ok(()) => {
                self.locked().deleted(at);
                Ok(())
            }
            // Gone already, or another object stands in its place.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Repeats a call that was refused because the API server has not learnt yet of the operator's own RoleBinding,
    /// and one that the API server asks to repeat. Where the RoleBinding is young, one call goes ahead of the others.
    async fn patient<T, F, Fut>(&self, at: &ChildRef, mut call: F) -> kube::Result<T>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = kube::Result<T>>,
    {
        let give_up = tokio::time::Instant::now() + BINDING_DELAY;
        let mut pause = Duration::from_millis(25);
        let mut turn = None;
        loop {
            if turn.is_none() && !at.kind.is_guard() {
                turn = self.gates.turn(&at.namespace).await;
            }
            let result = call().await;
            let (code, refusal) = match &result {
                Ok(_) => (200, None),
                Err(kube::Error::Api(status)) => {
                    let is_refusal =
                        status.code == 403 && status.reason == "Forbidden" && !at.kind.is_guard();
                    (status.code, is_refusal.then_some(status.message.as_str()))
                }
                Err(_) => return result,
            };
            if refusal.is_some_and(is_want_of_rights) {
                self.gates.close(&at.namespace);
            } else if turn.is_some() && !matches!(code, 401 | 429 | 500..) {
                self.gates.open(&at.namespace);
                turn = None;
            }
            let again = matches!(code, 429 | 503) || refusal.is_some_and(|message| !is_quota(message));
            if !again || tokio::time::Instant::now() + pause > give_up {
                return result;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(800));
        }
    }

    /// Makes one call when there is a slot for it. Between two attempts of [`Self::patient`] none is taken.
    async fn call<T>(
        &self,
        method: &'static str,
        call: impl Future<Output = kube::Result<T>>,
    ) -> kube::Result<T> {
        // A closed semaphore cannot happen: it is never closed.
        let _slot = self.slots.acquire().await;
        self.calls.make(method, call).await
    }

    fn api(&self, at: &ChildRef) -> Api<Whole> {
        let resource = at.kind.api_resource();
        if at.kind == Kind::Namespace {
            Api::all_with(self.client.clone(), &resource)
        } else {
            Api::namespaced_with(self.client.clone(), &at.namespace, &resource)
        }
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Whether RBAC has refused a call; a quota that is not counted yet and admission policies have the same code.
fn is_want_of_rights(message: &str) -> bool {
    message.contains("User \"") && message.contains(" cannot ")
}

/// A refusal for want of quota has the same code as one for want of rights, and repeating it helps nobody.
fn is_quota(message: &str) -> bool {
    message.contains("exceeded quota") || message.contains("is being terminated")
}

/// Whether an object was refused for nothing but fields that can never be changed: the role of a binding, the selector
/// of a Deployment, the data of a ConfigMap that was declared immutable.
fn is_fixed(status: &Status) -> bool {
    let causes = status.details.as_ref().map(|details| details.causes.as_slice()).unwrap_or_default();
    status.code == 422
        && !causes.is_empty()
        && causes.iter().all(|cause| {
            cause.message.contains("field is immutable") || cause.message.contains("cannot change roleRef")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invalid(messages: &[&str]) -> Status {
        let causes: Vec<Value> = messages.iter().map(|message| json!({"message": message})).collect();
        let status =
            json!({"status": "Failure", "code": 422, "reason": "Invalid", "details": {"causes": causes}});
        serde_json::from_value(status).unwrap()
    }

    #[test]
    fn a_refusal_for_want_of_rights_is_told_from_others() {
        let rights = "services is forbidden: User \"system:serviceaccount:conme-system:conme-operator\" cannot create \
                      resource \"services\" in API group \"\" in the namespace \"dolo-produzione\"";
        assert!(is_want_of_rights(rights));
        let quota =
            "services \"portale\" is forbidden: status unknown for quota: conme, resources: count/services";
        let limits = "persistentvolumeclaims \"dati\" is forbidden: maximum storage usage per PersistentVolumeClaim is 1Gi";
        assert!(!is_want_of_rights(quota) && !is_want_of_rights(limits));
    }

    #[test]
    fn only_what_is_refused_for_nothing_but_fixed_fields_is_made_anew() {
        let selector = r#"Invalid value: {"matchLabels":{"a":"b"}}: field is immutable"#;
        assert!(is_fixed(&invalid(&[selector])));
        assert!(is_fixed(&invalid(&["Forbidden: field is immutable when `immutable` is set"])));
        assert!(is_fixed(&invalid(&[r#"Invalid value: {"kind":"ClusterRole"}: cannot change roleRef"#])));
        // A mistake of the operator's own would only be repeated, with nothing left running.
        assert!(!is_fixed(&invalid(&[selector, "Required value"])));
        assert!(!is_fixed(&invalid(&["Duplicate value: \"http\""])));
        assert!(!is_fixed(&invalid(&[])));
    }
}
