//! What a check is, what came of it, and the document that says so.

use std::fmt::Write as _;

use anyhow::{Result, bail};
use futures::{FutureExt, StreamExt, stream};
use kube::Client;

use crate::requests::{Answer, Request};

/// How many requests are under way at once.
const AT_ONCE: usize = 8;

/// A check of the catalogue.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    /// Of the benchmark, or `CM-…` for our own.
    pub id: &'static str,
    pub title: &'static str,
    /// What is asked.
    pub asks: &'static str,
    /// What shows that the refusals are no accident.
    pub control: &'static str,
    pub answer: Ours,
}

/// How Con.Me stands to what a check wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ours {
    /// As the check wants it.
    Same,
    /// As the check wants it, but for what is said.
    But(&'static str),
    /// Otherwise, for the reason that is said.
    OnPurpose(&'static str),
}

impl Ours {
    fn words(self) -> &'static str {
        match self {
            Self::Same => "holds",
            Self::But(_) => "holds, with an exception",
            Self::OnPurpose(_) => "differs on purpose",
        }
    }
}

/// What the requests of a check were answered.
#[derive(Debug, Default)]
pub struct Tally {
    pub refused: usize,
    pub passed: usize,
    /// Requests that were not answered as they have to be.
    pub wrong: Vec<String>,
}

/// Who asks, by a name for people.
pub type Somebody = (&'static str, Client);

impl Tally {
    /// Asks all as somebody; each has to be answered as `right` says.
    async fn ask(
        &mut self,
        (who, client): &Somebody,
        requests: &[Request],
        expected: &str,
        right: impl Fn(&Answer) -> bool,
    ) -> Result<usize> {
        let sent: Vec<_> = requests.iter().map(|request| request.send(client).boxed()).collect();
        let answers: Vec<Result<Answer>> = stream::iter(sent).buffered(AT_ONCE).collect().await;
        let mut count = 0;
        for (request, answer) in requests.iter().zip(answers) {
            let answer = answer?;
            if right(&answer) {
                count += 1;
            } else {
                self.wrong.push(format!(
                    "{who}: {} {} has to be {expected}: {} {}\n    {}",
                    request.method, request.uri, answer.code, answer.message, request.body
                ));
            }
        }
        Ok(count)
    }

    /// Each has to be refused for want of rights.
    pub async fn no_rights(&mut self, who: &Somebody, requests: &[Request]) -> Result<()> {
        self.refused += self.ask(who, requests, "refused for want of rights", Answer::lacks_rights).await?;
        Ok(())
    }

    /// Each has to be refused with words that say why.
    pub async fn refused(&mut self, who: &Somebody, requests: &[Request], words: &str) -> Result<()> {
        let right = |answer: &Answer| answer.code == 403 && answer.message.contains(words);
        self.refused += self.ask(who, requests, &format!("refused with {words:?}"), right).await?;
        Ok(())
    }

    /// Each has to be refused by an admission policy whose name begins so.
    pub async fn by_policy(&mut self, who: &Somebody, requests: &[Request], policy: &str) -> Result<()> {
        let right = |answer: &Answer| answer.by_policy(policy);
        self.refused += self.ask(who, requests, &format!("refused by {policy}"), right).await?;
        Ok(())
    }

    /// The control: each has to pass.
    pub async fn passes(&mut self, who: &Somebody, requests: &[Request]) -> Result<()> {
        self.passed += self.ask(who, requests, "let through", Answer::passes).await?;
        Ok(())
    }

    /// The control where there may be no object to act on: nobody says that the rights are missing.
    pub async fn has_rights(&mut self, who: &Somebody, requests: &[Request]) -> Result<()> {
        let right = |answer: &Answer| answer.code != 401 && !answer.lacks_rights();
        self.passed += self.ask(who, requests, "no matter of rights", right).await?;
        Ok(())
    }

    /// A fact that has to hold, counted as a control.
    pub fn holds(&mut self, what: &str, holds: bool) {
        if holds {
            self.passed += 1;
        } else {
            self.wrong.push(format!("it does not hold that {what}"));
        }
    }
}

/// The document: nothing in it differs from run to run.
pub fn document(benchmark: &[(Check, Tally)], drafts: &[(Check, Tally)], own: &[(Check, Tally)]) -> String {
    let mut text = String::from(HEAD);
    let mut section = |title: &str, words: &str, checks: &[(Check, Tally)]| {
        let _ = write!(text, "\n## {title}\n\n{words}\n\n");
        text.push_str("| check | what | refused | let through | result |\n| --- | --- | --: | --: | --- |\n");
        for (check, tally) in checks {
            let _ = writeln!(
                text,
                "| `{}` | {} | {} | {} | {} |",
                check.id,
                check.title,
                tally.refused,
                tally.passed,
                check.answer.words()
            );
        }
        for (check, _) in checks {
            let more = match check.answer {
                Ours::Same => String::new(),
                Ours::But(reason) => format!(" Exception: {reason}."),
                Ours::OnPurpose(reason) => format!(" Otherwise here, because {reason}."),
            };
            let words = format!(
                "**{} ({})** Asked: {}. Control: {}.{more}",
                check.title, check.id, check.asks, check.control
            );
            let _ = write!(text, "\n{}\n", wrapped(&words));
        }
    };
    section("The benchmark", BENCHMARK, benchmark);
    section("What the benchmark plans", DRAFTS, drafts);
    section("What Con.Me asks of itself", OWN, own);
    text
}

/// Lines as long as those of the other documents.
fn wrapped(words: &str) -> String {
    let mut lines = vec![String::new()];
    for word in words.split(' ') {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.chars().count() + 1 + word.chars().count() <= 118 => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines.join("\n")
}

const HEAD: &str = "# Isolation of the municipalities

Written by `tests/tenants` from the answers of a real API server; `make test` fails when it is out of date, and
`make isolation-report` writes it anew. Every refusal is a request that an administrator of a municipality sends, in part
with the token of a service account, in part under the name of a person. Every check has a control: a request of the same
sort that has to be let through, so that nothing counts as refused that could never have worked.
";
const BENCHMARK: &str = "The 19 checks of the benchmark of the Kubernetes working group on multi-tenancy for namespaces
(`kubectl-mtb`, its last state of December 2021; two of its checks share one id). The titles and ids are theirs, what is
asked is ours: it is often more than theirs.";
const DRAFTS: &str = "Checks that the benchmark names and never had.";
const OWN: &str = "What other projects for the same purpose test on themselves, and where such projects have had holes.
*Mallory* is a service account that somebody has made `cluster-admin` of its namespace by mistake, the *steward* a person
who was given every right on namespaces: to them it is the admission policies that say no, not the roles.";

/// Compares the document with the one in the checkout, or writes it when the environment asks for that.
///
/// # Errors
/// When it is out of date, with the first line that differs.
pub fn compare(text: &str) -> Result<()> {
    let path = conme_stories::checkout().join("docs/security/isolation.md");
    if std::env::var_os("CONME_WRITE_REPORT").is_some() {
        return Ok(std::fs::write(path, text)?);
    }
    let stored = std::fs::read_to_string(&path).unwrap_or_default();
    if stored == text {
        return Ok(());
    }
    let differs = text.lines().zip(stored.lines()).find(|(new, old)| new != old);
    let (new, old) = differs.unwrap_or(("(a line more or less)", "(a line more or less)"));
    bail!(
        "docs/security/isolation.md is out of date: run `make isolation-report` and look at the difference\n  says: {old}\n  is:   {new}"
    );
}
