//! `tessera validate`: everything that can be wrong with a run, and what is worth a second thought, before it starts.

use clap::Args;
use serde_json::{Value, json};
use tessera_data::LengthHistogram;
use tessera_train::plan::advice::advise;
use tessera_train::run::{self, Contact};
use tessera_train::state::checkpoints;

use crate::failure::Failure;
use crate::output::{CAREFUL, GOOD, HEADING, Paint, print, print_json};
use crate::run_file::RunFile;
use crate::summary::{data_json, plan_json, run_summary};
use crate::text::{count, counted};
use crate::watch::Watcher;

/// Columns of the longest bar of a histogram.
const BAR: usize = 40;

/// Checks a run file, its model and its data, and advises, without training.
///
/// All weights to start from are read once, for values that are not finite. What is tokenised here is kept in the cache, so
/// that `train` begins at once. No run folder is made. Then the tracking server, and the registry or hub that the model is to go to, are
/// asked whether they are there and let this user in. Nothing there is changed: what is missing is made when the run starts.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  tessera validate run.yaml context_length=2048")]
pub struct ValidateArguments {
    #[command(flatten)]
    run_file: RunFile,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

impl ValidateArguments {
    /// Checks, and prints what was found.
    pub fn run(self) -> Result<(), Failure> {
        let prepared = self.run_file.prepare()?;
        let watcher = Watcher::default();
        let checked = prepared.check_first_weights(&watcher);
        watcher.clear();
        checked?;
        // Last: what is wrong on this machine is nothing to ask others about.
        let contacts = run::look(&prepared.plan.settings)?;
        let (plan, train) = (&prepared.plan, &prepared.train_summary);
        let eval = prepared.eval.as_ref().map(|(_, summary)| summary);
        let advice: Vec<String> = advise(&prepared).iter().map(ToString::to_string).collect();
        if self.json {
            let mut json = plan_json(plan);
            json["train"] = data_json(train);
            json["eval"] = eval.map_or(Value::Null, data_json);
            json["advice"] = json!(advice);
            json["services"] = contacts.iter().map(service_json).collect();
            return print_json(&json);
        }
        let paint = Paint::of_stdout();
        let mut text = run_summary(paint, plan, train, eval);
        let heading = "Lengths of the training examples, in tokens before any are cut";
        text.push_str(&format!("\n{}\n{}", paint.paint(HEADING, heading), histogram(&train.lengths)));
        if !advice.is_empty() {
            text.push_str(&format!("\n{}\n", paint.paint(CAREFUL, "Worth a second thought")));
            advice.iter().for_each(|advice| text.push_str(&format!("- {advice}\n")));
        }
        if !contacts.is_empty() {
            text.push_str(&format!("\n{}\n", paint.paint(HEADING, "Services")));
            for contact in &contacts {
                let (style, said) = match contact {
                    Contact::There(said) => (GOOD, said),
                    Contact::Away(said) => (CAREFUL, said),
                };
                text.push_str(&format!("- {}\n", paint.paint(style, said)));
            }
        }
        let verdict = paint.paint(GOOD, "Run file, model and data fit together.");
        text.push_str(&format!("\n{verdict}{}\n", self.beginning(&prepared)?));
        text.push_str(&format!("  {}\n", self.run_file.command("train")));
        print(&text)
    }

    /// Where `train` would begin.
    fn beginning(&self, prepared: &tessera_train::plan::Prepared) -> Result<String, Failure> {
        let folder = prepared.plan.settings.run_folder().join("checkpoints");
        let saved = if folder.is_dir() { checkpoints::list(&folder)? } else { Vec::new() };
        Ok(match saved.first() {
            Some(newest) => {
                format!(" Its folder holds {}, from which this goes on:", newest.folder.display())
            }
            None => " Start with:".to_owned(),
        })
    }
}

fn service_json(contact: &Contact) -> Value {
    let (is_there, said) = match contact {
        Contact::There(said) => (true, said),
        Contact::Away(said) => (false, said),
    };
    json!({"is_there": is_there, "said": said})
}

/// One line a bucket, its bar as long as its share of the fullest.
fn histogram(lengths: &LengthHistogram) -> String {
    let fullest = lengths.buckets().map(|(.., examples)| examples).max().unwrap_or(0).max(1);
    let width = count(lengths.longest).len();
    let mut text = String::new();
    for (shortest, longest, examples) in lengths.buckets() {
        // An example or two still shows.
        let bar = "█".repeat((examples * BAR).div_ceil(fullest));
        let longest = longest.min(lengths.longest);
        text.push_str(&format!(
            "{:>width$} – {:>width$}  {bar} {}\n",
            count(shortest),
            count(longest),
            count(examples)
        ));
    }
    text + &format!("the longest has {}\n", counted(lengths.longest, "token", "tokens"))
}
