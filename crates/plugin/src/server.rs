//! What the API server says of manifests, by a dry run, at the places of the files.

use kube::{
    Api,
    api::{ApiResource, DynamicObject, GroupVersionKind, PatchParams, ValidationDirective},
};

use crate::{
    cluster::Cluster,
    manifest::{Manifests, Object},
    path::Path,
    problem::Code,
    run::Failure,
    schema::Finding,
};

/// Asks the API server about every object, and adds what is not known yet.
///
/// # Errors
/// When it does not answer.
pub async fn check(cluster: &Cluster, manifests: &mut Manifests) -> Result<(), Failure> {
    for object in &mut manifests.objects {
        let name = object.name().to_owned();
        if name.is_empty() {
            continue;
        }
        let gvk = GroupVersionKind::gvk(conme_api::GROUP, conme_api::VERSION, object.kind.name());
        let resource = ApiResource::from_gvk_with_plural(&gvk, object.kind.plural());
        let api: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &resource);
        let params = PatchParams {
            dry_run: true,
            field_validation: Some(ValidationDirective::Strict),
            ..PatchParams::apply("kubectl-comune").force()
        };
        let mut body = object.root.to_json();
        if let Some(map) = body.as_object_mut() {
            map.remove("status");
        }
        let what = format!("asking about {}", object.label());
        if let Err(kube::Error::Api(status)) = cluster
            .ask(&what, async { api.patch(&name, &params, &conme_cluster::apply(&body)?).await })
            .await?
        {
            let may_not_ask = status.code == 401
                || (status.is_forbidden() && status.message.contains("cannot patch resource"));
            // A value of a wrong type is answered as if the API server itself had failed.
            let has_failed = status.code >= 500 && !status.message.contains("typed patch object");
            if may_not_ask || status.code == 429 || has_failed {
                return Err(Failure::Server(format!("{what}: {}", status.message)));
            }
            let causes = status.details.map(|details| details.causes).unwrap_or_default();
            let told: Vec<(String, String)> =
                causes.into_iter().map(|cause| (cause.field, cause.message)).collect();
            if told.is_empty() {
                add(object, "", &status.message);
            }
            for (field, message) in told {
                add(object, &field, &message);
            }
        }
    }
    Ok(())
}

/// Adds what the API server says, unless it is known.
fn add(object: &mut Object, field: &str, message: &str) {
    // It did not look at everything, because of what it has told.
    if message.contains("some validation rules were not checked") {
        return;
    }
    let field = if field == "<nil>" { "" } else { field };
    let path = Path::parse(field, &object.root);
    let is_known = object.findings.iter().any(|known| {
        message.contains(&known.message)
            || (!path.0.is_empty()
                && (known.path.is_within(&path) && known.code != Code::UnknownField
                    || path.is_within(&known.path)
                    || known.covers.iter().any(|covered| path.is_within(covered))))
    });
    // Unknown fields, keys that stand twice and unreadable types are told without a field, in one sentence.
    let in_one_sentence = path.0.is_empty()
        && !object.findings.is_empty()
        && [
            "strict decoding error",
            "unknown field",
            "duplicate field",
            "cannot unmarshal",
            "failed to create typed patch object",
        ]
        .iter()
        .any(|words| message.contains(words));
    // A value of another type stops the API server before it looks at fields at all.
    let is_of_type = path.0.is_empty()
        && object.findings.iter().any(|known| known.code == Code::WrongType)
        && !message.contains("denied")
        && !message.contains("forbidden");
    let of_metadata = path.0.is_empty() && message.contains("metadata.name: ");
    let name = Path::default().field("metadata").field("name");
    if is_known
        || in_one_sentence
        || is_of_type
        || (of_metadata && object.findings.iter().any(|known| known.path == name))
    {
        return;
    }
    let at = object.root.locate(&path);
    object.findings.push(Finding {
        path,
        at,
        code: Code::Server,
        message: format!("the API server refuses it: {message}"),
        suggestion: None,
        covers: Vec::new(),
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::Rules;

    #[test]
    fn what_is_known_is_not_told_again() {
        let mut manifests = Manifests::default();
        let text = "apiVersion: conme.venis.it/v1alpha1\nkind: Comune\nmetadata: {name: prova}\nspec:\n  entity: {kind: Comune, displayName: x, istat: '1', population: 5}\n";
        manifests.add("f", text.as_bytes(), &Rules::default());
        let object = &mut manifests.objects[0];
        assert_eq!(object.findings.len(), 1);
        add(
            object,
            "spec.entity.istat",
            "Invalid value: \"1\": a value here is an ISTAT code of 6 digits, in quotes: \"027012\"",
        );
        add(
            object,
            "<nil>",
            "Invalid value: null: some validation rules were not checked because the object was invalid",
        );
        assert_eq!(object.findings.len(), 1);
        add(object, "spec.entity.ipa", "Invalid value: no");
        add(object, "", "admission webhook says no");
        let told: Vec<(String, usize)> =
            object.findings[1..].iter().map(|finding| (finding.path.to_string(), finding.at.line)).collect();
        assert_eq!(told, [("spec.entity.ipa".to_owned(), 5), (String::new(), 1)]);
    }
}
