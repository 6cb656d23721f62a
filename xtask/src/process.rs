//! Running programs: shown before they run, and a failure names the program and how it ended.

use std::ffi::OsStr;
use std::process::{Command, Stdio};

use crate::console;
use crate::error::{Result, TaskError};

/// The command as a user would type it.
pub(crate) fn shown(command: &Command) -> String {
    let mut text = String::new();
    for (key, value) in command.get_envs() {
        if let Some(value) = value {
            text += &format!("{}={} ", key.to_string_lossy(), quoted(value));
        }
    }
    text += &quoted(command.get_program());
    for argument in command.get_args() {
        text.push(' ');
        text += &quoted(argument);
    }
    text
}

fn quoted(word: &OsStr) -> String {
    if std::env::var_os("CARGO").is_some_and(|cargo| cargo == word) {
        return "cargo".to_owned(); // its full path is noise
    }
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "+-_./:=,@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Runs a program with our own streams, after printing its command line.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    console::line(format_args!("$ {}", shown(command)));
    let status = command
        .status()
        .map_err(|error| cannot_run(command, &error))?;
    if status.success() {
        return Ok(());
    }
    Err(TaskError::failed(format!(
        "`{}` ended with {status}",
        shown(command)
    )))
}

/// Runs a program without showing it; what it printed is shown only if it fails.
pub(crate) fn run_quietly(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| cannot_run(command, &error))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.trim().lines().collect();
    let last = lines[lines.len().saturating_sub(20)..].join("\n");
    Err(TaskError::failed(format!(
        "`{}` ended with {}\n{last}",
        shown(command),
        output.status
    )))
}

pub(crate) fn cannot_run(command: &Command, error: &std::io::Error) -> TaskError {
    TaskError::failed(format!(
        "cannot run `{}`: {error}",
        command.get_program().to_string_lossy()
    ))
}
