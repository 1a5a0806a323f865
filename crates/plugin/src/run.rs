//! From the command line to the exit code.

use std::{
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
};

use conme_api::Comune;
use serde_json::Value;

use crate::{
    about,
    cli::{Cli, ClusterArgs, Colour, Command, DiffArgs, RenderArgs, ReportFormat, ValidateArgs},
    cluster::Cluster,
    credentials, diff, follow, input,
    manifest::{Manifests, OurKind},
    output,
    problem::Note,
    render,
    rules::Rules,
    server,
    site::{Operator, Site, comune_of},
    validate,
};

/// Why a command could not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A file cannot be read, an argument makes no sense.
    #[error("{0}")]
    Usage(String),
    /// The API server cannot be reached, or refused an answer.
    #[error("{0}")]
    Server(String),
    /// Everything else.
    #[error("{0}")]
    Other(String),
}

impl Failure {
    fn code(&self) -> u8 {
        match self {
            Self::Other(_) => 1,
            Self::Usage(_) => 2,
            Self::Server(_) => 3,
        }
    }
}

impl From<input::InputError> for Failure {
    fn from(error: input::InputError) -> Self {
        Self::Usage(error.to_string())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Other(error.to_string())
    }
}

/// Runs a command and says with which code to exit.
pub fn run(cli: Cli) -> ExitCode {
    let outcome = dispatch(cli);
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            eprintln!("error: {}", output::visible(&failure.to_string()));
            ExitCode::from(failure.code())
        }
    }
}

fn dispatch(cli: Cli) -> Result<u8, Failure> {
    // What asks no cluster needs no threads either.
    match &cli.command {
        Command::Reference => return print(&about::reference()).map(|()| 0),
        Command::Completion { shell } => return print(&about::completion(*shell)).map(|()| 0),
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcome = runtime.block_on(command(cli));
    // A watch that is still open is not waited for.
    runtime.shutdown_background();
    outcome
}

async fn command(cli: Cli) -> Result<u8, Failure> {
    let cluster = &cli.cluster;
    match &cli.command {
        Command::Validate(args) => check(args, cluster).await,
        Command::Render(args) => show(args, cluster).await,
        Command::Diff(args) => match compare(args, cluster).await {
            // 1 says that there are differences.
            Err(Failure::Other(words)) => Err(Failure::Usage(words)),
            outcome => outcome,
        },
        Command::Status(args) => follow::status(&Cluster::connect(cluster).await?, args).await,
        Command::List(args) => follow::list(&Cluster::connect(cluster).await?, args).await,
        Command::Wait(args) => follow::wait(&Cluster::connect(cluster).await?, args).await,
        Command::RotateCredentials(args) => {
            credentials::rotate(&Cluster::connect(cluster).await?, args).await
        }
        Command::Psql(args) => credentials::psql(&Cluster::connect(cluster).await?, args).await,
        Command::Version { client, output } => about::version(cluster, *client, *output).await,
        Command::Propose { words } => print(&about::propose(cluster, words).await).map(|()| 0),
        Command::Completion { .. } | Command::Reference => Ok(0),
    }
}

fn operator(cluster: &ClusterArgs, service_account: &str) -> Operator {
    Operator {
        data_center: cluster.data_center.clone(),
        namespace: cluster.namespace.clone(),
        service_account: service_account.to_owned(),
    }
}

async fn check(args: &ValidateArgs, cluster: &ClusterArgs) -> Result<u8, Failure> {
    let sources = input::read(&args.files)?;
    let surroundings = input::read(&args.site)?;
    let mut site = Site::new(&operator(cluster, &Operator::default().service_account));
    let rules = Rules::default();
    let report = if args.server {
        let begin = std::time::Instant::now();
        let connection = Cluster::connect(cluster).await?;
        let mut notes = Vec::new();
        connection.survey(&mut site, &mut notes).await?;
        let (_, mut manifests) = validate::validate(&sources, &surroundings, site, &rules);
        server::check(&connection, &mut manifests).await?;
        manifests.notes.extend(notes);
        validate::report(&sources, &manifests, begin)
    } else {
        validate::validate(&sources, &surroundings, site, &rules).0
    };
    match args.output {
        ReportFormat::Table => {
            tell_notes(&report.notes);
            print(&output::table(&report))?;
        }
        ReportFormat::Json => print(&format!("{:#}\n", output::json(&report)))?,
        ReportFormat::Junit => print(&output::junit(&report))?,
        ReportFormat::Sarif => print(&format!("{:#}\n", output::sarif(&report)))?,
    }
    Ok(u8::from(!report.problems.is_empty()))
}

/// The Comuni of files, which have to be free of slips of their own.
fn sound_comuni(manifests: &Manifests, sources: &[input::Source]) -> Result<Vec<Comune>, Failure> {
    let report = validate::report(sources, manifests, std::time::Instant::now());
    if !report.problems.is_empty() {
        eprint!("{}", output::table(&report));
        return Err(Failure::Other("correct the manifests first (kubectl comune validate)".into()));
    }
    let objects = manifests.objects.iter().filter(|object| object.kind == OurKind::Comune);
    let comuni: Vec<Comune> = objects.filter_map(comune_of).collect();
    if comuni.is_empty() {
        return Err(Failure::Other("the files hold no Comune".into()));
    }
    Ok(comuni)
}

async fn show(args: &RenderArgs, cluster: &ClusterArgs) -> Result<u8, Failure> {
    let sources = input::read(&args.files)?;
    let surroundings = input::read(&args.site)?;
    let rules = Rules::default();
    let mut site = Site::new(&operator(cluster, &args.operator_account));
    if args.server {
        let mut notes = Vec::new();
        Cluster::connect(cluster).await?.survey(&mut site, &mut notes).await?;
        tell_notes(&notes);
    }
    let manifests = validate::examine(&sources, &rules);
    let comuni = sound_comuni(&manifests, &sources)?;
    site.add(&validate::examine(&surroundings, &rules));
    site.add(&manifests);
    site.settle();
    let (mut objects, mut obstacles): (Vec<Value>, Vec<String>) = Default::default();
    for comune in &comuni {
        // What a cluster knows of it already counts.
        let known = comune.metadata.name.as_deref().and_then(|name| site.comune(name)).cloned();
        let comune = &known.unwrap_or_else(|| comune.clone());
        let verdict = site.verdict(comune);
        obstacles.extend(render::obstacles(comune, &verdict));
        objects.extend(render::children(&verdict).into_iter().map(|child| child.body));
    }
    print(&render::text(&objects, args.output)?)?;
    tell_obstacles(&obstacles)
}

/// What would not be built is told; then not all is well.
fn tell_obstacles(obstacles: &[String]) -> Result<u8, Failure> {
    for obstacle in obstacles {
        eprintln!("not built: {}", output::visible(obstacle));
    }
    Ok(u8::from(!obstacles.is_empty()))
}

async fn compare(args: &DiffArgs, cluster: &ClusterArgs) -> Result<u8, Failure> {
    let sources = input::read(&args.files)?;
    let surroundings = input::read(&args.site)?;
    let rules = Rules::default();
    let manifests = validate::examine(&sources, &rules);
    let comuni = sound_comuni(&manifests, &sources)?;
    let connection = Cluster::connect(cluster).await?;
    let mut site = Site::new(&operator(cluster, &args.operator_account));
    let mut notes = Vec::new();
    connection.survey(&mut site, &mut notes).await?;
    tell_notes(&notes);
    site.add(&validate::examine(&surroundings, &rules));
    site.add(&manifests);
    site.settle();
    let mut text = String::new();
    for comune in &comuni {
        let api: kube::Api<Comune> = kube::Api::all(connection.client.clone());
        let name = comune.metadata.name.clone().unwrap_or_default();
        let before = connection.call(&format!("reading the Comune `{name}`"), api.get_opt(&name)).await?;
        // The status that is in force counts: who was admitted stays admitted.
        let comune = site.comune(&name).cloned().unwrap_or_else(|| comune.clone());
        let verdict = site.verdict(&comune);
        for obstacle in render::obstacles(&comune, &verdict) {
            eprintln!("not built: {}", output::visible(&obstacle));
        }
        text.push_str(&diff::of_comune(before.as_ref(), &comune)?);
        text.push_str(&diff::of_databases(before.as_ref(), &comune));
        if let Some(valid) = &verdict.valid {
            let live = diff::Live::read(&connection, &name, &diff::wanted_namespaces(&comune)).await?;
            if let Some(message) = live.blind_spots() {
                tell_notes(&[Note { file: String::new(), message }]);
            }
            let plan = live.plan(valid, before.as_ref());
            let asked_before =
                before.as_ref().map_or_else(Vec::new, |before| render::children(&site.verdict(before)));
            text.push_str(&diff::of_plan(
                &plan,
                &live,
                before.as_ref(),
                &asked_before,
                &render::unknown_annotations(valid),
            )?);
        }
    }
    let colours = match args.color {
        Colour::Always => true,
        Colour::Never => false,
        Colour::Auto => is_terminal() && std::env::var_os("NO_COLOR").is_none(),
    };
    print(&if colours { diff::coloured(&text) } else { text.clone() })?;
    Ok(u8::from(!text.is_empty()))
}

/// Notes go beside the output, so that a pipeline reads nothing but the output.
fn tell_notes(notes: &[Note]) {
    for note in notes {
        let file = if note.file.is_empty() { String::new() } else { format!("{}: ", note.file) };
        eprintln!("note: {file}{}", output::visible(&note.message));
    }
}

/// Writes to standard output. A reader such as `head` may have seen enough.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(Failure::from),
    }
}

/// Whether somebody looks at the output.
pub(crate) fn is_terminal() -> bool {
    std::io::stdout().is_terminal()
}
