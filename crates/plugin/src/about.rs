//! What the plugin tells of itself: versions, completion, reference.

use std::{fmt::Write as _, time::Duration};

use clap::{Command as ClapCommand, CommandFactory};
use conme_api::{Comune, VERSION};
use k8s_openapi::{
    api::apps::v1::Deployment,
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::{
    cli::{Cli, ClusterArgs, CompletionShell, EXIT_CODES, PlainFormat},
    cluster::Cluster,
    manifest::OurKind,
    page, render,
    run::{Failure, print},
};

/// Name of the program on the PATH.
const PROGRAM: &str = "kubectl-comune";

/// `version`
///
/// # Errors
/// When the output cannot be written; a cluster that cannot be asked is told in the output.
pub async fn version(args: &ClusterArgs, client_only: bool, output: PlainFormat) -> Result<u8, Failure> {
    let mut told =
        json!({"client": env!("CARGO_PKG_VERSION"), "resources": format!("{}/{VERSION}", conme_api::GROUP)});
    if !client_only {
        match Cluster::connect(args).await {
            Ok(cluster) => told["server"] = of_server(&cluster, &args.namespace).await,
            Err(failure) => told["server"] = json!({"error": failure.to_string()}),
        }
    }
    let text = match output {
        PlainFormat::Json => format!("{told:#}\n"),
        PlainFormat::Yaml => render::yaml(&told)?,
        PlainFormat::Table => {
            let mut rows = vec![
                vec!["plugin".to_owned(), word(&told["client"])],
                vec!["resources it knows".to_owned(), word(&told["resources"])],
            ];
            if let Some(server) = told["server"].as_object() {
                for (key, value) in server {
                    rows.push(vec![format!("server: {key}"), word(value)]);
                }
            }
            page::table(&rows)
        }
    };
    print(&text)?;
    Ok(0)
}

fn word(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(word).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

async fn of_server(cluster: &Cluster, namespace: &str) -> Value {
    let mut told = serde_json::Map::new();
    match cluster.call("asking for the version", cluster.client.apiserver_version()).await {
        Ok(info) => told.insert("kubernetes".into(), json!(info.git_version)),
        Err(failure) => {
            told.insert("error".into(), json!(failure.to_string()));
            return Value::Object(told);
        }
    };
    let definitions: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    let name = format!("{}.{}", OurKind::Comune.plural(), conme_api::GROUP);
    let definition = match cluster.call("reading the definition of Comune", definitions.get_opt(&name)).await
    {
        Ok(Some(found)) => {
            let served = found
                .spec
                .versions
                .iter()
                .filter(|version| version.served)
                .map(|version| json!(version.name));
            Value::Array(served.collect())
        }
        Ok(None) => json!("not installed"),
        Err(failure) => json!(failure.to_string()),
    };
    told.insert("definitions".into(), definition);
    let deployments: Api<Deployment> = Api::namespaced(cluster.client.clone(), namespace);
    let operator = match cluster.call("reading the operator", deployments.get_opt("conme-operator")).await {
        Ok(Some(found)) => found
            .labels()
            .get("app.kubernetes.io/version")
            .map_or_else(|| json!("without version"), |version| json!(version)),
        Ok(None) => json!(format!("not in the namespace {namespace} (--namespace)")),
        Err(failure) => json!(failure.to_string()),
    };
    told.insert("operator".into(), operator);
    Value::Object(told)
}

/// `completion`
pub fn completion(shell: CompletionShell) -> String {
    let Some(shell) = shell.shell() else {
        return format!(
            "#!/bin/sh\n# kubectl completes `kubectl comune` through this program: put it on the PATH as \
             kubectl_complete-comune\n# and make it executable.\nexec {PROGRAM} propose -- \"$@\"\n"
        );
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), PROGRAM, &mut script);
    // For bash, clap_complete takes the hyphen of the name for a step down to a subcommand, and then completes nothing
    // below it.
    String::from_utf8_lossy(&script).replace("kubectl__subcmd__comune", "kubectl__comune")
}

/// What may stand at the place of the last word, in the form that kubectl asks of its plugins: a word a line, and last
/// whether files may follow.
pub async fn propose(args: &ClusterArgs, words: &[String]) -> String {
    const WORDS_ONLY: &str = ":4";
    const ALSO_FILES: &str = ":0";
    let root = Cli::command();
    let (last, before) =
        words.split_last().map_or(("", [].as_slice()), |(last, before)| (last.as_str(), before));
    let mut positional = before.iter().filter(|word| !word.starts_with('-'));
    let command = positional.next().and_then(|name| root.find_subcommand(name));
    let mut proposals: Vec<String> = Vec::new();
    let mut directive = WORDS_ONLY;
    match command {
        None => proposals.extend(
            root.get_subcommands()
                .filter(|command| !command.is_hide_set())
                .map(|command| command.get_name().to_owned()),
        ),
        Some(command) if last.starts_with('-') => {
            let flags = command.get_arguments().chain(root.get_arguments());
            proposals.extend(flags.filter_map(|flag| flag.get_long()).map(|flag| format!("--{flag}")));
        }
        Some(command) => {
            let flag = before.last().and_then(|word| word.strip_prefix("--"));
            let of_flag =
                flag.and_then(|flag| command.get_arguments().find(|arg| arg.get_long() == Some(flag)));
            let values: Vec<String> = of_flag.map_or_else(Vec::new, |arg| {
                arg.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect()
            });
            match (values.is_empty(), command.get_name()) {
                (false, _) => proposals.extend(values),
                (true, "validate" | "render" | "diff") => directive = ALSO_FILES,
                (true, "completion") => {
                    proposals.extend(
                        command
                            .get_positionals()
                            .flat_map(|arg| arg.get_possible_values())
                            .map(|value| value.get_name().to_owned()),
                    );
                }
                (true, name) => {
                    proposals.extend(names(args, name, &positional.cloned().collect::<Vec<_>>()).await)
                }
            }
        }
    }
    let mut text = String::new();
    for proposal in proposals.iter().filter(|proposal| proposal.starts_with(last)) {
        let _ = writeln!(text, "{proposal}");
    }
    let _ = writeln!(text, "{directive}");
    text
}

/// Names of Comuni, or of the databases of one. A cluster that does not answer at once proposes nothing.
async fn names(args: &ClusterArgs, command: &str, given: &[String]) -> Vec<String> {
    let quick = ClusterArgs { request_timeout: Duration::from_secs(2), ..args.clone() };
    let Ok(cluster) = Cluster::connect(&quick).await else { return Vec::new() };
    match (command, given) {
        ("status", []) | ("wait", _) | ("psql" | "rotate-credentials", []) => {
            let comuni = cluster.list::<Comune>("").await.unwrap_or_default();
            comuni.iter().map(ResourceExt::name_any).filter(|name| !given.contains(name)).collect()
        }
        ("psql" | "rotate-credentials", [name]) => {
            let comune = cluster.comune(name).await.ok();
            comune
                .into_iter()
                .flat_map(|comune| comune.spec.databases)
                .map(|database| database.name)
                .collect()
        }
        _ => Vec::new(),
    }
}

/// The reference of all commands as Markdown.
pub fn reference() -> String {
    let mut root = Cli::command().term_width(100);
    root.build();
    let mut text = format!(
        "# kubectl comune\n\n<!-- Generated: cargo run -q -p conme-kubectl -- reference > docs/kubectl-comune.md -->\n\n\
         A plugin of kubectl: any program on the PATH that is called `{PROGRAM}` answers to `kubectl comune`. `make build` \
         builds it into the target folder. Pipelines: [examples/pipelines](../examples/pipelines/). Why it is as it is: \
         [decision 15](decisions/0015-kubectl-comune.md).\n\n{}\n",
        exit_code_table()
    );
    section(&mut text, &mut root, 2);
    text
}

fn exit_code_table() -> String {
    let mut table = String::from("| exit code | meaning |\n| --- | --- |\n");
    for line in EXIT_CODES.lines().skip(1) {
        if let Some((code, meaning)) = line.trim().split_once("  ") {
            let _ = writeln!(table, "| {code} | {meaning} |");
        }
    }
    table
}

fn section(text: &mut String, command: &mut ClapCommand, level: usize) {
    let name = command.get_bin_name().unwrap_or(command.get_name()).to_owned();
    let help = command.render_long_help().to_string();
    let help: Vec<&str> = help.lines().map(str::trim_end).collect();
    let _ = writeln!(text, "{} {name}\n\n```\n{}\n```\n", "#".repeat(level), help.join("\n").trim_end());
    for below in command.get_subcommands_mut().filter(|below| !below.is_hide_set()) {
        section(text, below, 3);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_is_up_to_date() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/kubectl-comune.md");
        let present = std::fs::read_to_string(file).unwrap_or_default();
        assert!(
            present.trim_end() == reference().trim_end(),
            "not up to date: cargo run -q -p conme-kubectl -- reference > docs/kubectl-comune.md"
        );
    }

    #[test]
    fn every_shell_completes_below_the_first_word() {
        for shell in
            [CompletionShell::Bash, CompletionShell::Zsh, CompletionShell::Fish, CompletionShell::Powershell]
        {
            let script = completion(shell);
            assert!(script.contains("rotate-credentials") && script.contains("print-command"), "{shell:?}");
        }
        assert!(!completion(CompletionShell::Bash).contains("kubectl__subcmd__comune"));
        assert!(completion(CompletionShell::Kubectl).starts_with("#!/bin/sh\n"));
    }

    #[test]
    fn kubectl_gets_words_and_a_directive() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let propose = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            runtime.block_on(propose(&ClusterArgs::default(), &words))
        };
        assert_eq!(propose(&["st"]), "status\n:4\n");
        assert!(!propose(&[""]).contains("propose"), "hidden commands are not proposed");
        assert_eq!(propose(&["validate", ""]), ":0\n");
        assert_eq!(propose(&["validate", "--output", "s"]), "sarif\n:4\n");
        assert!(propose(&["status", "--w"]).starts_with("--watch\n"));
        assert_eq!(propose(&["completion", "ku"]), "kubectl\n:4\n");
    }
}
