//! What the command does, said on standard error: lines, and bars where it is a terminal.

use std::collections::HashMap;
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use nspawn_image::{Reporter, StepId, StepKind};

use crate::output::size;

/// Standard error, for people.
#[derive(Debug)]
pub(crate) struct Progress {
    quiet: bool,
    bars: Option<MultiProgress>,
    steps: HashMap<u64, ProgressBar>,
    next: u64,
    spinner: Option<ProgressBar>,
}

impl Progress {
    pub(crate) fn new(quiet: bool) -> Self {
        let bars = (!quiet && std::io::stderr().is_terminal()).then(MultiProgress::new);
        Self {
            quiet,
            bars,
            steps: HashMap::new(),
            next: 1,
            spinner: None,
        }
    }

    /// Says one line.
    pub(crate) fn say(&mut self, text: &str) {
        if self.quiet {
            return;
        }
        let write = || {
            let _ = writeln!(std::io::stderr(), "{text}");
        };
        match &self.bars {
            Some(bars) => bars.suspend(write),
            None => write(),
        }
    }

    /// Shows what is being waited for, on a terminal only.
    pub(crate) fn waiting(&mut self, text: &str) {
        let Some(bars) = &self.bars else { return };
        let spinner = self.spinner.get_or_insert_with(|| {
            let bar = bars.add(ProgressBar::new_spinner());
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        spinner.set_message(text.to_owned());
    }

    /// Takes down what [`waiting`](Self::waiting) shows.
    pub(crate) fn waited(&mut self) {
        if let Some(spinner) = self.spinner.take() {
            spinner.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.waited();
    }
}

impl Reporter for Progress {
    fn begin(&mut self, kind: StepKind, subject: &str, total: Option<u64>) -> StepId {
        let id = self.next;
        self.next += 1;
        let what = total
            .map(|total| format!(" ({})", size(total)))
            .unwrap_or_default();
        if kind != StepKind::Publish {
            // it is over in a moment, and its subject is a name of ours
            self.say(&format!("{} {subject}{what}", kind.verb()));
        }
        let bar = self.bars.as_ref().map(|bars| {
            let bar = bars.add(total.map_or_else(ProgressBar::new_spinner, ProgressBar::new));
            let template = match total {
                Some(_) => "{msg:12} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}",
                None => "{msg:12} {spinner} {bytes} {bytes_per_sec}",
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_message(kind.verb());
            bar
        });
        self.steps.extend(bar.map(|bar| (id, bar)));
        StepId(id)
    }

    fn progress(&mut self, step: StepId, done: u64) {
        if let Some(bar) = self.steps.get(&step.0) {
            bar.set_position(done);
        }
    }

    fn end(&mut self, step: StepId) {
        if let Some(bar) = self.steps.remove(&step.0) {
            bar.finish_and_clear();
        }
    }

    fn notice(&mut self, text: &str) {
        self.say(&format!("note: {text}"));
    }
}
