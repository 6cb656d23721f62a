//! What a task says, on standard error, and the one question it asks.

use std::fmt::Display;
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

/// Prints one line; a closed standard error is no reason to stop.
pub(crate) fn line(text: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Prints the header of a step.
pub(crate) fn step(name: &str, detail: impl Display) {
    let (bold, plain) = if io::stderr().is_terminal() {
        ("\x1b[1m", "\x1b[0m")
    } else {
        ("", "")
    };
    line(format_args!("\n{bold}==> {name}{plain}  {detail}"));
}

pub(crate) fn error(error: &dyn Display) {
    line(format_args!("\n{error}"));
}

/// Asks a question that is answered with Enter or `y` for yes; `None` where there is nobody to ask.
pub(crate) fn confirm(question: &str) -> Option<bool> {
    if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
        return None;
    }
    let mut stderr = io::stderr().lock();
    let _ = write!(stderr, "{question} [Y/n] ");
    let _ = stderr.flush();
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).ok()?;
    Some(
        matches!(
            answer.trim().to_ascii_lowercase().as_str(),
            "" | "y" | "yes"
        ) && answer.ends_with('\n'),
    )
}
