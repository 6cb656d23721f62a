//! `cargo xtask fuzz`: each fuzz target for a while, several at a time.

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};

use super::setup;
use crate::console;
use crate::error::{PathContext as _, Result, TaskError};
use crate::process;
use crate::programs::Purpose;
use crate::workspace;

/// Targets that run at a time, where there are as many CPUs: some have two threads of their own.
const JOBS: usize = 2;
/// How long a target may take to end after it was asked to.
const GRACE: Duration = Duration::from_secs(10);
/// How often it is looked whether a target has ended.
const TICK: Duration = Duration::from_millis(100);
/// What libFuzzer ends with when it was interrupted.
const INTERRUPTED: i32 = 72;
/// Lines shown of the log of a target that found something.
const SHOWN: usize = 12;

/// Run the fuzz targets, each for a while
#[derive(clap::Args, Debug)]
pub(crate) struct FuzzArgs {
    /// Install without asking (also with CI=true in the environment)
    #[arg(long, short)]
    yes: bool,
    /// Only this target
    target: Option<String>,
    /// Time for each target, in seconds
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

pub(crate) fn run(args: &FuzzArgs) -> Result<()> {
    setup::prepare(Purpose::Test, args.yes, "fuzz")?;
    let targets = targets()?;
    match &args.target {
        None => run_these(&targets, args.seconds),
        Some(name) if targets.contains(name) => run_these(std::slice::from_ref(name), args.seconds),
        Some(name) => Err(TaskError::failed(format!("there is no fuzz target {name}"))
            .hint(format!("there are: {}", targets.join(", ")))),
    }
}

/// Runs every target for `seconds`.
pub(crate) fn run_all(seconds: u32) -> Result<()> {
    run_these(&targets()?, seconds)
}

/// The targets are the files of `fuzz/fuzz_targets/`, in the order of their names.
fn targets() -> Result<Vec<String>> {
    let dir = workspace::root().join("fuzz/fuzz_targets");
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&dir).at("list", &dir)? {
        let path = entry.at("list", &dir)?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(
                path.file_stem()
                    .map(|stem| stem.to_string_lossy().into_owned()),
            );
        }
    }
    names.sort();
    Ok(names)
}

fn run_these(names: &[String], seconds: u32) -> Result<()> {
    let Some(first) = names.first() else {
        console::line("no fuzz targets");
        return Ok(());
    };
    let built = build(if names.len() == 1 { Some(first) } else { None })?;
    let jobs = std::thread::available_parallelism().map_or(1, |cpus| cpus.get().min(JOBS));
    console::line(format_args!(
        "{} targets, {jobs} at a time, {seconds} s each; AddressSanitizer is {}; logs in {}",
        names.len(),
        if has_address_sanitizer(&built.program(first))? {
            "on"
        } else {
            "off"
        },
        built.logs.display(),
    ));
    // A terminal's Ctrl-C reaches the targets too, which then end with what they have counted.
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // The second one ends this process as it would without us.
        signal_hook::flag::register_conditional_default(signal, Arc::clone(&stop))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&stop)))
            .map_err(|error| TaskError::failed(format!("cannot wait for a signal: {error}")))?;
    }
    let mut waiting: VecDeque<&String> = names.iter().collect();
    let mut running: Vec<Target> = Vec::new();
    let mut found = Vec::new();
    let mut stopped_at = None;
    loop {
        while running.len() < jobs
            && stopped_at.is_none()
            && let Some(name) = waiting.pop_front()
        {
            running.push(Target::start(name, seconds, &built)?);
        }
        if running.is_empty() {
            break;
        }
        std::thread::sleep(TICK);
        if stop.load(Ordering::Relaxed) {
            let since = *stopped_at.get_or_insert_with(Instant::now);
            if since.elapsed() > GRACE {
                running.iter_mut().for_each(Target::kill);
            }
        }
        let mut at = 0;
        while at < running.len() {
            match running[at].ended()? {
                None => at += 1,
                Some(status) => found.extend(running.swap_remove(at).tell(status)?),
            }
        }
    }
    // So does any that comes later.
    stop.store(true, Ordering::Relaxed);
    if let Some(name) = found.first() {
        return Err(TaskError::failed(format!(
            "{} of {} fuzz targets found something: {}",
            found.len(),
            names.len(),
            found.join(", ")
        ))
        .hint(format!(
            "keep the input in fuzz/seeds/{name}/ and add a test for it"
        )));
    }
    match stopped_at {
        Some(_) => Err(TaskError::failed(
            "interrupted; nothing was found until then",
        )),
        None => Ok(()),
    }
}

/// Where the targets were built.
struct Built {
    programs: PathBuf,
    logs: PathBuf,
}

impl Built {
    fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }
}

/// Builds one target or all of them.
///
/// The compiler that builds everything else builds them too. cargo-fuzz passes flags that only a nightly compiler takes
/// of itself; `RUSTC_BOOTSTRAP` makes a stable one take them, and saves a fresh machine the download of a second
/// toolchain. Stable ships the sanitizer's runtime for the usual platforms.
fn build(target: Option<&str>) -> Result<Built> {
    let sysroot = process::run_quietly(rustc().args(["--print", "sysroot"]))?;
    let version = process::run_quietly(rustc().arg("-vV"))?;
    let host = version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .ok_or_else(|| TaskError::failed("rustc names no host"))?;
    let libraries = Path::new(sysroot.trim()).join("lib/rustlib").join(host);
    let sanitizer = if has_runtime(&libraries.join("lib")) {
        "address"
    } else {
        "none"
    };
    let folder = workspace::target_dir()?.join("fuzz");
    let mut command = workspace::cargo();
    command
        .env("RUSTC_BOOTSTRAP", "1")
        .args(["fuzz", "build", "--sanitizer", sanitizer, "--target-dir"])
        .arg(&folder)
        .args(target);
    process::run(&mut command)?;
    let built = Built {
        programs: folder.join(host).join("release"),
        logs: folder.join("log"),
    };
    std::fs::create_dir_all(&built.logs).at("create", &built.logs)?;
    Ok(built)
}

fn rustc() -> Command {
    let mut command = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    command.current_dir(workspace::root());
    command
}

/// Whether the toolchain has AddressSanitizer's runtime.
fn has_runtime(libraries: &Path) -> bool {
    let names = std::fs::read_dir(libraries).into_iter().flatten().flatten();
    names
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .any(|name| name.starts_with("librustc-") && name.ends_with(".asan.a"))
}

/// Asks the sanitizer itself, which answers only where it is in the program.
fn has_address_sanitizer(program: &Path) -> Result<bool> {
    let mut command = Command::new(program);
    command.env("ASAN_OPTIONS", "help=1").arg("-help=1");
    let output = command
        .output()
        .map_err(|error| process::cannot_run(&command, &error))?;
    Ok(String::from_utf8_lossy(&output.stderr).contains("flags for AddressSanitizer"))
}

/// A target that runs.
struct Target {
    name: String,
    child: Child,
    program: PathBuf,
    log: PathBuf,
}

impl Target {
    fn start(name: &str, seconds: u32, built: &Built) -> Result<Self> {
        // What is found goes into the first folder; the seeds are read alone.
        let fuzz = workspace::root().join("fuzz");
        let [corpus, seeds, artifacts] =
            ["corpus", "seeds", "artifacts"].map(|folder| fuzz.join(folder).join(name));
        for dir in [&corpus, &seeds, &artifacts] {
            std::fs::create_dir_all(dir).at("create", dir)?;
        }
        let (program, log) = (built.program(name), built.logs.join(format!("{name}.log")));
        let file = File::create(&log).at("create", &log)?;
        let mut command = Command::new(&program);
        command
            .args([&corpus, &seeds])
            .arg(format!("-artifact_prefix={}/", artifacts.display()))
            .args([
                &format!("-max_total_time={seconds}"),
                "-print_final_stats=1",
            ])
            // One input must end in 10 s; the memory limit is libFuzzer's own default, stated.
            .args(["-timeout=10", "-rss_limit_mb=2048"])
            .stdin(Stdio::null())
            .stdout(file.try_clone().at("open", &log)?)
            .stderr(file);
        let child = command
            .spawn()
            .map_err(|error| process::cannot_run(&command, &error))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            program,
            log,
        })
    }

    fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child
            .try_wait()
            .map_err(|error| TaskError::failed(format!("cannot wait for {}: {error}", self.name)))
    }

    fn kill(&mut self) {
        let _ = self.child.kill(); // it may have ended just now
    }

    /// Says how it ended; answers with its name where it found something.
    fn tell(self, status: ExitStatus) -> Result<Option<String>> {
        let log = std::fs::read(&self.log).at("read", &self.log)?;
        let log = String::from_utf8_lossy(&log);
        let is_fine = status.success() || status.code() == Some(INTERRUPTED);
        let summary = summary(&log);
        if is_fine {
            console::line(format_args!("    {}: {summary}", self.name));
            return Ok(None);
        }
        console::line(format_args!(
            "    {}: FAILED ({status}), {summary}",
            self.name
        ));
        for line in reason(&log) {
            console::line(format_args!("      {line}"));
        }
        match artifact(&log) {
            Some(path) => console::line(format_args!(
                "      the input: {path}\n      again:     {} {path}",
                self.program.display()
            )),
            None => console::line(format_args!("      the log: {}", self.log.display())),
        }
        Ok(Some(self.name))
    }
}

/// Runs, their rate, what they covered and how many inputs are kept, as far as the log tells.
fn summary(log: &str) -> String {
    let statistic = |name: &str| {
        let line = log.lines().rev().find_map(|line| line.strip_prefix(name));
        line.map_or("?", str::trim)
    };
    let is_status = |line: &&str| line.starts_with('#') && line.contains("cov:");
    let last = log.lines().rev().find(is_status);
    let word = |name: &str| {
        let mut words = last.unwrap_or_default().split_ascii_whitespace();
        words.find(|word| *word == name);
        words.next().unwrap_or("?").to_owned()
    };
    format!(
        "{} runs, {} a second, {} places covered, {} inputs kept",
        statistic("stat::number_of_executed_units:"),
        statistic("stat::average_exec_per_sec:"),
        word("cov:"),
        word("corp:").split('/').next().unwrap_or("?"),
    )
}

/// What went wrong: from the panic's or the sanitizer's first line on, without the stack.
fn reason(log: &str) -> Vec<&str> {
    let is_start = |line: &&str| {
        line.contains("panicked at") || line.contains("ERROR: ") || line.contains("ALARM: ")
    };
    // "#0 …" of the sanitizer, "0: …" and "at …" of Rust.
    let is_stack = |line: &&str| {
        let line = line.trim_start();
        let rest = line.trim_start_matches(|c: char| c.is_ascii_digit());
        let is_frame = rest.len() < line.len() && rest.starts_with(": ");
        is_frame
            || ["#", "at ", "stack backtrace"]
                .iter()
                .any(|start| line.starts_with(start))
    };
    let lines = log.lines().skip_while(|line| !is_start(line));
    lines
        .take_while(|line| !line.starts_with("SUMMARY"))
        .filter(|line| !is_stack(line) && !line.trim().is_empty())
        .take(SHOWN)
        .collect()
}

/// The file that libFuzzer wrote the input to.
fn artifact(log: &str) -> Option<&str> {
    let line = log
        .lines()
        .rev()
        .find(|line| line.contains("Test unit written to "))?;
    line.split_once("Test unit written to ")
        .map(|(_, path)| path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "INFO: Seed: 1\n#2\tINITED cov: 10 ft: 11 corp: 1/1b exec/s: 0 rss: 30Mb\n\
        #900\tNEW    cov: 978 ft: 20 corp: 431/11Mb lim: 4 exec/s: 17 rss: 51Mb L: 4/4 MS: 1 Custom-\n\
        ###### End of recommended dictionary. ######\n\
        \nthread '<unnamed>' panicked at fuzz_targets/x.rs:1:2:\nbyte 3: 64 and 0\n\
        stack backtrace:\n   0: f\n             at x.rs\n==1== ERROR: libFuzzer: deadly signal\n    #0 0x5 in f\n\
        SUMMARY: libFuzzer: deadly signal\n\
        artifact_prefix='/a/'; Test unit written to /a/crash-1\nstat::number_of_executed_units: 901\n\
        stat::average_exec_per_sec:     17\n";

    #[test]
    fn a_log_is_summed_up() {
        assert_eq!(
            summary(LOG),
            "901 runs, 17 a second, 978 places covered, 431 inputs kept"
        );
        assert_eq!(
            summary(""),
            "? runs, ? a second, ? places covered, ? inputs kept"
        );
    }

    #[test]
    fn a_finding_is_named_without_its_stack() {
        assert_eq!(
            reason(LOG),
            [
                "thread '<unnamed>' panicked at fuzz_targets/x.rs:1:2:",
                "byte 3: 64 and 0",
                "==1== ERROR: libFuzzer: deadly signal",
            ]
        );
        assert_eq!(artifact(LOG), Some("/a/crash-1"));
        assert_eq!(artifact(""), None);
    }
}
