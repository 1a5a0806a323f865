//! Events: few, and repeated ones are folded by the recorder.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};

/// Writes events in the background; losing one loses nothing else.
#[derive(Clone)]
pub struct Events {
    recorder: Recorder,
}

/// The longest note that the API server takes, in bytes.
const NOTE: usize = 1000;

impl Events {
    /// Writes as the operator's instance `instance`.
    pub fn new(client: Client, instance: &str) -> Self {
        let reporter =
            Reporter { controller: "conme.venis.it/operator".into(), instance: Some(instance.into()) };
        Self { recorder: Recorder::new(client, reporter) }
    }

    /// Tells of something that went as it should.
    pub fn normal(&self, about: ObjectReference, reason: &str, action: &str, note: &str) {
        self.publish(EventType::Normal, about, reason, action, note);
    }

    /// Tells of something that a person should know.
    pub fn warning(&self, about: ObjectReference, reason: &str, action: &str, note: &str) {
        self.publish(EventType::Warning, about, reason, action, note);
    }

    fn publish(&self, type_: EventType, about: ObjectReference, reason: &str, action: &str, note: &str) {
        let mut end = note.len().min(NOTE);
        while !note.is_char_boundary(end) {
            end -= 1;
        }
        let event = Event {
            type_,
            reason: reason.into(),
            note: Some(note[..end].to_owned()),
            action: action.into(),
            secondary: None,
        };
        let recorder = self.recorder.clone();
        tokio::spawn(async move {
            let published =
                tokio::time::timeout(conme_cluster::CALL_TIMEOUT, recorder.publish(&event, &about)).await;
            match published {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::debug!(%error, "an event could not be written"),
                Err(_) => tracing::debug!("an event could not be written in time"),
            }
        });
    }
}
