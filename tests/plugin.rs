//! `kubectl comune` as a system administrator uses it: what it finds wrong the API server refuses, what it renders the
//! operator makes, what it tells is so; and it never shows a password.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result};
use conme_api::keys;
use conme_blueprint::{Kind, child};
use conme_stories::{Credentials, DataCentre, PATIENCE, checkout, condition, entity, eventually};
use conme_testbed::install;
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};

const SERVER: &str = "pg-venis-1";

/// What a command said.
struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Said {
    /// The output of a command that has to succeed.
    fn ok(self) -> Result<String> {
        anyhow::ensure!(self.code == 0, "exit code {}\n{}\n{}", self.code, self.out, self.err);
        Ok(self.out)
    }
}

/// The folder with the plugin: beside the other programs.
fn programs() -> PathBuf {
    let here = std::env::current_exe().unwrap();
    let folder = here.ancestors().skip(1).take(2).find(|folder| folder.join("kubectl-comune").exists());
    folder.expect("kubectl-comune is not built: cargo build -p conme-kubectl").to_path_buf()
}

async fn kubectl(dc: &DataCentre, args: &[&str]) -> Result<Said> {
    let inherited = std::env::var_os("PATH").unwrap_or_default();
    let path = [programs(), dc.instance().bin_dir()].into_iter().chain(std::env::split_paths(&inherited));
    let output = tokio::process::Command::new(dc.instance().bin("kubectl"))
        .arg("comune")
        .args(args)
        .current_dir(checkout())
        .env("KUBECONFIG", dc.instance().kubeconfig()?)
        .env("PATH", std::env::join_paths(path)?)
        .env_remove("PGPASSWORD")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(PATIENCE * 2, output).await.context("the command does not end")??;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Said {
        code: output.status.code().unwrap_or(-1),
        out: text(&output.stdout),
        err: text(&output.stderr),
    })
}

fn broken() -> Vec<(PathBuf, String)> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(checkout().join("tests/manifests/broken"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files.into_iter().map(|file| (file.clone(), std::fs::read_to_string(&file).unwrap())).collect()
}

fn name_of(file: &Path) -> String {
    file.file_name().unwrap().to_string_lossy().into_owned()
}

/// What the API server says when the text of a document is sent to it as it stands, as if it were to be created.
async fn refusal_of(dc: &DataCentre, document: &str) -> Option<String> {
    let is = |kind: &str| document.lines().any(|line| line == format!("kind: {kind}"));
    let plural = if is("DataCenter") {
        "datacenters"
    } else if is("ServiceTemplate") {
        "servicetemplates"
    } else {
        "comuni"
    };
    let request = http::Request::post(format!(
        "/apis/conme.venis.it/v1alpha1/{plural}?dryRun=All&fieldValidation=Strict&fieldManager=story"
    ))
    .header("content-type", "application/yaml")
    .body(document.as_bytes().to_vec())
    .unwrap();
    match dc.client().request::<Value>(request).await {
        Ok(_) => None,
        Err(kube::Error::Api(status)) => Some(status.message.clone()),
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_api_server_refuses_what_the_definitions_can_refuse_and_takes_the_rest() -> Result<()> {
    let dc = DataCentre::shared().await?;
    let mut wrong = Vec::new();
    let mut count = BTreeMap::new();
    for (file, text) in broken() {
        let verdict = text.lines().find_map(|line| line.strip_prefix("# API server: ")).unwrap().to_owned();
        let mut refused = None;
        for document in text.split("\n---\n") {
            refused = refused.or(refusal_of(&dc, document).await);
        }
        if refused.is_some() != (verdict != "accepts") {
            wrong.push(format!("{}: {verdict}, and the API server says {refused:?}", name_of(&file)));
        }
        *count.entry(verdict).or_insert(0) += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count["refuses"] > 60 && count["accepts"] > 10, "{count:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asking_the_api_server_besides_tells_nothing_twice() -> Result<()> {
    let dc = DataCentre::shared().await?;
    let problems = |said: &Said| -> BTreeMap<String, BTreeSet<String>> {
        let report: Value = serde_json::from_str(&said.out).unwrap_or_else(|_| panic!("{}", said.err));
        let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for problem in report["problems"].as_array().unwrap() {
            let told = format!("{} {}", problem["path"], problem["line"]);
            let of_file = all.entry(problem["file"].as_str().unwrap().to_owned()).or_default();
            assert!(of_file.insert(told), "told twice: {problem}");
        }
        all
    };
    let folder = "tests/manifests/broken";
    let offline = kubectl(
        &dc,
        &[
            "validate",
            folder,
            "--site",
            "examples/datacenter.yaml",
            "--site",
            "examples/catalogue",
            "-o",
            "json",
        ],
    )
    .await?;
    let online = kubectl(&dc, &["validate", folder, "--server", "-o", "json"]).await?;
    assert_eq!((offline.code, online.code), (1, 1), "{}", online.err);
    assert_eq!(problems(&online), problems(&offline));
    // What only the API server knows: a code that cannot change.
    dc.apply("plug-fisso", json!({"entity": entity("Comune Fisso", 900_700)})).await?;
    let folder = scratch("fisso");
    let file = folder.join("fisso.yaml");
    std::fs::write(
        &file,
        "apiVersion: conme.venis.it/v1alpha1\nkind: Comune\nmetadata: {name: plug-fisso}\nspec:\n  entity: {kind: Comune, displayName: Fisso, istat: '900701', population: 4000}\n",
    )?;
    let file = file.display().to_string();
    assert_eq!(kubectl(&dc, &["validate", &file]).await?.code, 0);
    let said = kubectl(&dc, &["validate", "--server", &file]).await?;
    assert_eq!(said.code, 1);
    assert!(said.out.contains(":5:53 Comune plug-fisso spec.entity.istat\n"), "{}", said.out);
    assert!(said.out.contains("the ISTAT code cannot change"), "{}", said.out);
    let stranger = kubectl(&dc, &["--as", "nessuno", "validate", "--server", &file]).await?;
    assert_eq!(stranger.code, 3, "{}", stranger.out);
    std::fs::remove_dir_all(folder)?;
    dc.tidy_up("plug-fisso").await
}

/// A folder of its own below the target folder.
fn scratch(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("conme-plugin-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn address(object: &Value) -> (String, String, String) {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    (text("/kind"), text("/metadata/namespace"), text("/metadata/name"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_rendered_is_what_the_operator_makes_and_then_nothing_differs() -> Result<()> {
    let dc = DataCentre::shared().await?;
    for (file, name) in
        [("examples/minimal.yaml", "comune-di-prova"), ("examples/full.yaml", "porto-esempio")]
    {
        let before = kubectl(&dc, &["diff", file]).await?;
        assert_eq!(before.code, 1, "{}", before.err);
        assert!(before.out.contains(&format!("+++ manifest: Namespace {name}-produzione")), "{}", before.out);
        let rendered = kubectl(&dc, &["render", file, "--server", "-o", "json"]).await?.ok()?;
        install::apply_files(dc.instance(), &checkout().join(file)).await?;
        kubectl(&dc, &["wait", name, "--timeout", "90s"]).await?.ok()?;

        let rendered: Value = serde_json::from_str(&rendered)?;
        let mut expected = BTreeSet::new();
        for object in rendered["items"].as_array().unwrap() {
            let (kind_name, namespace, object_name) = address(object);
            let kind = Kind::ALL.into_iter().find(|kind| kind.name() == kind_name).unwrap();
            let mut live = dc
                .read(kind, &namespace, &object_name)
                .await?
                .with_context(|| format!("no {kind_name} {namespace}/{object_name}"))?;
            live["apiVersion"] = json!(kind.api_version());
            live["kind"] = json!(kind_name);
            child::strip(kind, &mut live);
            assert!(
                child::holds(object, &live),
                "{kind_name} {namespace}/{object_name}\nrendered {object:#}\nlive {live:#}"
            );
            expected.insert((kind_name, namespace, object_name));
        }
        let mut made = BTreeSet::new();
        for kind in Kind::ALL {
            let api: Api<kube::api::DynamicObject> = Api::all_with(dc.client(), &kind.api_resource());
            for object in
                api.list(&ListParams::default().labels(&format!("conme.venis.it/comune={name}"))).await?
            {
                if child::is_of_operator(kind, &serde_json::to_value(&object)?) {
                    made.insert((
                        kind.name().to_owned(),
                        object.namespace().unwrap_or_default(),
                        object.name_any(),
                    ));
                }
            }
        }
        assert_eq!(made, expected, "{file}");
        let after = kubectl(&dc, &["diff", file]).await?;
        assert_eq!((after.code, after.out.as_str()), (0, ""), "{file}: {}", after.err);

        // Of one that exists it is rendered, too, what only the cluster can know.
        let again = kubectl(&dc, &["render", file, "--server", "-o", "json"]).await?.ok()?;
        let again: Value = serde_json::from_str(&again)?;
        let namespaces: Vec<&Value> = again["items"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|object| object["kind"] == "Namespace")
            .collect();
        assert!(!namespaces.is_empty());
        for object in namespaces {
            let live =
                dc.read(Kind::Namespace, "", object["metadata"]["name"].as_str().unwrap()).await?.unwrap();
            let annotations = &object["metadata"]["annotations"];
            for key in [keys::COMUNE_UID, keys::ADMITTED_AT, keys::APPLIED] {
                assert!(annotations[key].is_string(), "{key} is not in {annotations}");
                assert_eq!(annotations[key], live["metadata"]["annotations"][key], "{key}");
            }
        }
    }

    // An edit shows what it would change, and no more than that.
    let folder = scratch("diff");
    let edited = folder.join("edited.yaml");
    let text = std::fs::read_to_string(checkout().join("examples/full.yaml"))?;
    let changed = text.replace("replicas: 1  #", "replicas: 2  #").replace(
        "- {kind: Group, name: porto-esempio-segreteria}",
        "- {kind: Group, name: porto-esempio-archivio}",
    );
    assert_ne!(changed, text);
    std::fs::write(&edited, changed)?;
    let said = kubectl(&dc, &["diff", &edited.display().to_string()]).await?;
    assert_eq!(said.code, 1, "{}", said.err);
    let headings: BTreeSet<&str> =
        said.out.lines().filter_map(|line| line.strip_prefix("+++ manifest: ")).collect();
    let bindings: Vec<&str> =
        headings.iter().copied().filter(|heading| heading.starts_with("RoleBinding")).collect();
    assert_eq!(bindings.len(), 2, "{headings:?}");
    assert!(
        headings.contains("Comune porto-esempio")
            && headings.contains("Deployment porto-esempio-collaudo/mappe"),
        "{headings:?}"
    );
    assert_eq!(headings.len(), 4, "{headings:?}");
    assert!(said.out.contains("-  replicas: 1\n+  replicas: 2\n"), "{}", said.out);
    assert!(!said.out.contains('\u{1b}'), "no colours where nobody looks");

    // Who may not look into the namespaces is told so, and nothing is made up.
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "plug-sad"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "conme-sad-admin"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "plug-sad"}],
    });
    install::apply(dc.instance(), &binding).await?;
    let as_sad = ["--as", "anna", "--as-group", "plug-sad", "diff", "examples/full.yaml"];
    let said = kubectl(&dc, &as_sad).await?;
    assert_eq!((said.code, said.out.as_str()), (0, ""), "{}", said.err);
    assert!(said.err.contains("you may not list resourcequotas, limitranges"), "{}", said.err);
    install::run(dc.instance(), "kubectl", &["delete", "clusterrolebinding", "plug-sad"], None).await?;

    // What is taken out of the manifest is removed, or kept where it holds data.
    let without = text.replace("    - name: mappe\n      template: gis\n      environment: collaudo\n      replicas: 1  # absent: as the template says\n", "");
    assert_ne!(without, text);
    std::fs::write(&edited, without)?;
    let said = kubectl(&dc, &["diff", &edited.display().to_string()]).await?;
    assert!(
        said.out.contains("--- live: Deployment porto-esempio-collaudo/mappe\n+++ /dev/null\n"),
        "{}",
        said.out
    );
    assert!(!said.out.contains("live: PersistentVolumeClaim"), "{}", said.out);
    assert_eq!(kubectl(&dc, &["diff", "nowhere.yaml"]).await?.code, 2);
    std::fs::remove_dir_all(folder)?;
    let unprotected = json!({"spec": {"protected": false}});
    dc.comuni().patch("porto-esempio", &PatchParams::default(), &Patch::Merge(&unprotected)).await?;
    dc.tidy_up("porto-esempio").await?;
    dc.tidy_up("comune-di-prova").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_with_the_plugin() -> Result<()> {
    let dc = DataCentre::shared().await?;
    dc.two_templates("plug").await?;
    let name = "plug-giorno";
    let mut heard = String::new();
    let mut ask = async |args: &[&str]| -> Result<Said> {
        let said = kubectl(&dc, args).await?;
        heard.push_str(&said.out);
        heard.push_str(&said.err);
        Ok(said)
    };
    let version = ask(&["version"]).await?.ok()?;
    assert!(version.contains("server: kubernetes") && version.contains("v1alpha1"), "{version}");

    // It is waited for something that cannot come, and the reason is told.
    let spec = |template: &str| {
        json!({
            "entity": entity("Comune Giorno", 900_710),
            "databases": [{"name": "atti", "engine": "postgresql", "placement": {"shared": SERVER}}],
            "services": [{"name": "portale", "template": template, "database": "atti"}],
        })
    };
    dc.apply(name, spec("plug-portale-che-manca")).await?;
    let late = ask(&["wait", name, "--timeout", "3s"]).await?;
    assert_eq!(late.code, 1, "{}", late.out);
    assert!(late.err.contains("plug-portale-che-manca"), "{}", late.err);
    let listed = ask(&["list", "--not-ready"]).await?.ok()?;
    assert!(listed.lines().any(|line| line.starts_with(name) && line.contains("False")), "{listed}");

    // It is put right while somebody waits.
    let patient = ["wait", name, "--for", "available", "--timeout", "90s"];
    let waiting = kubectl(&dc, &patient);
    let applying = async {
        tokio::task::yield_now().await;
        dc.apply(name, spec("plug-portale")).await
    };
    let (waited, applied) = tokio::join!(waiting, applying);
    applied?;
    let waited = waited?.ok()?;
    assert!(waited.ends_with(&format!("{name} is Available\n")), "{waited}");
    ask(&["wait", name, "--for", "condition=DatabasesReady"]).await?.ok()?;
    ask(&["wait", name]).await?.ok()?;

    let page = ask(&["status", name]).await?.ok()?;
    for words in [
        "Comune Giorno (plug-giorno)",
        "Ready",
        "AsDeclared",
        "plug-giorno-produzione",
        "plug-giorno-produzione/db-atti",
        "1/1",
        "http",
        "] 50m/",
        "Latest events",
    ] {
        assert!(page.contains(words), "{words} is not in\n{page}");
    }
    let comune: Value = serde_json::from_str(&ask(&["status", name, "-o", "json"]).await?.ok()?)?;
    assert_eq!(comune["metadata"]["name"], name);
    let wide = ask(&["list", "-o", "wide"]).await?.ok()?;
    assert!(wide.lines().any(|line| line.starts_with(name) && line.contains("900710")), "{wide}");
    let typo = ask(&["status", "plug-gorno"]).await?;
    assert_eq!(typo.code, 1);
    assert!(typo.err.contains("did you mean `plug-giorno`?"), "{}", typo.err);

    // Into the database, with one's own rights.
    let credentials = Credentials::of(&dc, "plug-giorno-produzione", "atti").await?;
    let query = [
        "psql",
        name,
        "atti",
        "--",
        "-Atc",
        "select current_user, ssl from pg_stat_ssl where pid = pg_backend_pid()",
    ];
    if dc.instance().bin("psql").exists() {
        let answer = ask(&query).await?.ok()?;
        assert_eq!(answer.trim(), format!("{}|t", credentials.get("username")));
        let wrong = ask(&["psql", name, "atti", "--", "-c", "select nonsense"]).await?;
        assert_eq!(wrong.code, 1, "the code of psql itself: {}", wrong.err);
    }
    let printed = ask(&["psql", name, "atti", "--print-command"]).await?.ok()?;
    assert!(
        printed.contains("PGSSLMODE=verify-full") && printed.contains("kubectl get secret db-atti"),
        "{printed}"
    );
    assert!(ask(&["psql", name, "ati"]).await?.err.contains("did you mean `atti`?"));
    let stranger = ask(&["--as", "nessuno", "psql", name, "atti"]).await?;
    assert_eq!(stranger.code, 3);
    assert!(stranger.err.contains("forbidden"), "{}", stranger.err);

    // A new password is asked for, the operator makes it, and it lets in.
    let rotated = ask(&["rotate-credentials", name, "atti", "--wait", "--timeout", "60s"]).await?.ok()?;
    assert!(rotated.ends_with("atti: the Secret db-atti holds a new password\n"), "{rotated}");
    let renewed = Credentials::of(&dc, "plug-giorno-produzione", "atti").await?;
    assert_ne!(renewed.get("password"), credentials.get("password"));
    assert_eq!(renewed.get("username"), "plug_giorno__atti__app2");
    renewed.login(None).await?;
    if dc.instance().bin("psql").exists() {
        let who = ["psql", name, "atti", "--", "-Atc", "select session_user, current_user"];
        let answer = ask(&who).await?.ok()?;
        assert_eq!(answer.trim(), "plug_giorno__atti__app2|plug_giorno__atti__app");
    }
    ask(&["wait", name]).await?.ok()?;
    dc.comune_where(name, "two logins", |comune| {
        let told = comune.status.as_ref().and_then(|status| status.databases.first());
        told.and_then(|told| told.credential.as_ref()).is_some_and(|credential| credential.retiring.is_some())
    })
    .await?;
    let page = ask(&["status", name]).await?.ok()?;
    assert!(page.contains(" plug_giorno__atti__app2 "), "{page}");
    assert!(page.contains("the login plug_giorno__atti__app stays open at least until "), "{page}");
    // The next one has to wait for the end of the overlap, and that is told.
    let second = ask(&["rotate-credentials", name, "atti"]).await?;
    assert!(second.err.contains("the next rotation begins when it is closed"), "{}", second.err);
    second.ok()?;
    let wish = dc.comuni().get(name).await?.annotations()[keys::ROTATE_CREDENTIALS].clone();
    let (database, time) = wish.split_once('@').unwrap();
    assert_eq!(database, "atti", "one wish for a database is enough: {wish}");
    assert!(time.parse::<jiff::Timestamp>().is_ok(), "{wish}");

    // kubectl asks for completions through a program of its own.
    let words = ask(&["propose", "--", "status", "plug-g"]).await?.ok()?;
    assert_eq!(words, "plug-giorno\n:4\n");
    let folder = scratch("completion");
    let helper = folder.join("kubectl_complete-comune");
    std::fs::write(&helper, ask(&["completion", "kubectl"]).await?.ok()?)?;
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755))?;
    let path = [folder.clone(), programs(), PathBuf::from("/usr/bin"), PathBuf::from("/bin")];
    let completed = tokio::process::Command::new(dc.instance().bin("kubectl"))
        .args(["__complete", "comune", "status", "plug-g"])
        .env("KUBECONFIG", dc.instance().kubeconfig()?)
        .env("PATH", std::env::join_paths(path)?)
        .output()
        .await?;
    let completed = String::from_utf8_lossy(&completed.stdout).into_owned();
    assert!(completed.starts_with("plug-giorno\n:4"), "{completed}");
    std::fs::remove_dir_all(folder)?;

    // What changes while somebody watches is told as lines where no terminal is.
    let watch = ["status", name, "--watch"];
    let watching = kubectl_for(&dc, &watch, "Comune Sera", || async {
        let mut spec = spec("plug-portale");
        spec["entity"]["displayName"] = json!("Comune Sera");
        dc.apply(name, spec).await.map(|_| ())
    });
    heard.push_str(&watching.await?);

    for secret in
        [&credentials, &renewed].into_iter().flat_map(|known| [known.get("password"), known.get("uri")])
    {
        assert!(secret.len() > 10 && !heard.contains(secret), "a password was shown");
    }
    let closed = condition(&dc.comuni().get(name).await?, "Ready").is_some();
    assert!(closed);
    dc.tidy_up(name).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_holds_a_comune_is_shown_and_its_end_can_be_stopped_as_told() -> Result<()> {
    let dc = DataCentre::shared().await?;
    let name = "plug-fine";
    let spec = |extra: Value| {
        let mut spec = json!({"entity": entity("Comune Fine", 900_730)});
        for (key, value) in extra.as_object().unwrap() {
            spec[key] = value.clone();
        }
        spec
    };
    let set = async |extra: Value| -> Result<()> {
        dc.comuni().patch(name, &PatchParams::default(), &Patch::Merge(json!({"spec": extra}))).await?;
        Ok(())
    };
    let kubectl_itself = async |command: &str| {
        let words: Vec<&str> = command.split_whitespace().skip(1).collect();
        install::run(dc.instance(), "kubectl", &words, None).await.map(|_| ())
    };
    let says = async |words: &str| {
        eventually(&format!("the status says: {words}"), || async {
            Ok(kubectl(&dc, &["status", name]).await?.ok()?.contains(words))
        })
        .await
    };
    dc.apply(name, spec(json!({"deletionPolicy": "Delete", "cordoned": true, "protected": true}))).await?;
    kubectl(&dc, &["wait", name, "--timeout", "90s"]).await?.ok()?;
    let listed = kubectl(&dc, &["list"]).await?.ok()?;
    let line = listed.lines().find(|line| line.starts_with(name)).context("it is listed")?;
    assert!(line.contains(" cordoned,protected "), "{listed}");
    says("cordoned: its people may not write").await?;
    set(json!({"paused": true, "protected": false})).await?;
    says("paused: nothing is changed").await?;
    set(json!({"paused": false, "cordoned": false})).await?;
    kubectl(&dc, &["wait", name, "--timeout", "90s"]).await?.ok()?;

    // Asked for, confirmed, and stopped with the very command that the page shows.
    kubectl_itself(&format!("kubectl delete comune {name} --wait=false")).await?;
    says("nothing is deleted yet: the condition Deleting says what it waits for").await?;
    let uid = dc.comuni().get(name).await?.uid().context("a uid")?;
    kubectl_itself(&format!("kubectl annotate comune {name} {}={name}/{uid}", keys::CONFIRM_DELETE)).await?;
    says("to stop it: ").await?;
    let page = kubectl(&dc, &["status", name]).await?.ok()?;
    let line = page.lines().find(|line| line.contains("to stop it: ")).context("it says so")?;
    let end = dc.comuni().get(name).await?.status.and_then(|status| status.deletion?.delete_after);
    assert!(line.contains(&format!("what it has is deleted after {}, ", end.context("an end")?)), "{line}");
    kubectl_itself(line.split_once("to stop it: ").unwrap().1).await?;
    says("nothing is deleted yet").await?;
    assert!(dc.read(Kind::Namespace, "", "plug-fine-produzione").await?.is_some());
    set(json!({"deletionPolicy": "Retain"})).await?;
    eventually("it has gone and left everything", || async {
        Ok(dc.comuni().get_opt(name).await?.is_none())
    })
    .await?;
    assert!(dc.read(Kind::Namespace, "", "plug-fine-produzione").await?.is_some());

    // Applied again it takes the namespace back; what the cluster will write into it by itself is no difference.
    let folder = scratch("again");
    let file = folder.join("again.json");
    let again = json!({
        "apiVersion": "conme.venis.it/v1alpha1", "kind": "Comune", "metadata": {"name": name}, "spec": spec(json!({})),
    });
    std::fs::write(&file, again.to_string())?;
    eventually("it is told as an orphan that would be one no more", || async {
        let said = kubectl(&dc, &["diff", &file.display().to_string()]).await?;
        anyhow::ensure!(said.code == 1, "{}", said.err);
        anyhow::ensure!(
            !said.out.contains(keys::COMUNE_UID) && !said.out.contains(keys::ADMITTED_AT),
            "{}",
            said.out
        );
        Ok(said.out.contains(&format!("-    {}", keys::ORPHANED)))
    })
    .await?;
    std::fs::remove_dir_all(folder)?;
    dc.tidy_up(name).await
}

/// Runs a command that does not end by itself until it has said some words, while something is done.
async fn kubectl_for<F, Fut>(
    dc: &DataCentre,
    args: &[&str],
    words: &str,
    mut done_meanwhile: F,
) -> Result<String>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<()>>,
{
    use tokio::io::AsyncReadExt as _;
    let mut child = tokio::process::Command::new(programs().join("kubectl-comune"))
        .args(args)
        .env("KUBECONFIG", dc.instance().kubeconfig()?)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut stdout = child.stdout.take().context("no output")?;
    let (mut heard, mut buffer, mut done) = (String::new(), [0_u8; 4096], false);
    let listening = async {
        while !heard.contains(words) {
            let read = stdout.read(&mut buffer).await?;
            anyhow::ensure!(read > 0, "it has ended with: {heard}");
            heard.push_str(&String::from_utf8_lossy(&buffer[..read]));
            if !done {
                done = true;
                done_meanwhile().await?;
            }
        }
        Ok(())
    };
    tokio::time::timeout(PATIENCE, listening).await.context("it has not said it")??;
    child.kill().await?;
    Ok(heard)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_for_several_ends_when_the_last_is_there() -> Result<()> {
    let dc = DataCentre::shared().await?;
    let names = ["plug-primo", "plug-secondo"];
    for (name, istat) in names.iter().zip([900_720, 900_721]) {
        dc.apply(name, json!({"entity": entity(name, istat)})).await?;
    }
    let said = kubectl(&dc, &["wait", names[0], names[1], "--timeout", "90s"]).await?.ok()?;
    for name in names {
        assert!(said.contains(&format!("{name} is Ready\n")), "{said}");
    }
    assert_eq!(kubectl(&dc, &["wait", "plug-niemand"]).await?.code, 1);
    let begin = std::time::Instant::now();
    let unreachable =
        kubectl(&dc, &["--request-timeout", "2s", "--kubeconfig", "/nonexistent", "list"]).await?;
    assert_eq!(unreachable.code, 3);
    assert!(begin.elapsed() < Duration::from_secs(30));
    let gone = || async {
        for name in names {
            dc.tidy_up(name).await?;
        }
        Ok(true)
    };
    eventually("the story is over", gone).await
}
