//! Runs the built program `nspawn-run` with a state of its own.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::{scratch, sys, wait};

/// How long a command may take unless it says otherwise: several boots on a slow machine.
const TIMEOUT: Duration = Duration::from_secs(120);

/// The built program, beside the test that runs: `target/debug/nspawn-run`.
///
/// # Panics
///
/// Where it was not built.
pub fn program() -> PathBuf {
    let test = std::env::current_exe().expect("the test's own path");
    let program = test
        .parent()
        .and_then(Path::parent)
        .expect("target/PROFILE/deps/TEST")
        .join("nspawn-run");
    assert!(
        program.exists(),
        "{} is absent: run `cargo build -p nspawn-cli`",
        program.display()
    );
    program
}

/// The program with a private `--root` and `--run-root`; both folders go away with this value.
///
/// Machines that a failed test left running are killed then, by the folders that their processes name.
#[derive(Debug)]
pub struct Cli {
    program: PathBuf,
    root: TempDir,
    run_root: TempDir,
}

impl Cli {
    /// Makes the two folders.
    ///
    /// # Panics
    ///
    /// Where the program was not built.
    #[expect(clippy::new_without_default, reason = "it makes folders")]
    pub fn new() -> Self {
        Self {
            program: program(),
            root: scratch::on_disk(),
            run_root: scratch::for_sockets(),
        }
    }

    /// The value of `--root`: images and machines.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// The value of `--run-root`: what does not outlive a boot.
    pub fn run_root(&self) -> &Path {
        self.run_root.path()
    }

    /// A command line: the two folders, then `arguments`.
    pub fn command<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Invocation {
        let mut invocation = Invocation::new(&self.program);
        invocation
            .command
            .arg("--root")
            .arg(self.root())
            .arg("--run-root")
            .arg(self.run_root());
        invocation.command.args(arguments);
        invocation
    }

    /// Runs a command line to its end.
    ///
    /// # Panics
    ///
    /// As [`Invocation::run`] does.
    #[track_caller]
    pub fn run<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Finished {
        self.command(arguments).run()
    }
}

impl Drop for Cli {
    fn drop(&mut self) {
        for pid in processes_naming(&[self.root(), self.run_root()]) {
            let _ = sys::kill(pid, libc::SIGKILL); // it may have ended by itself
            let _ = sys::wait_for_exit(pid, Duration::from_secs(5));
        }
    }
}

/// Processes with one of the folders in their command line.
fn processes_naming(dirs: &[&Path]) -> Vec<i32> {
    use std::os::unix::ffi::OsStrExt as _;
    let own = std::process::id();
    let names_one = |text: &[u8]| {
        dirs.iter().any(|dir| {
            let dir = dir.as_os_str().as_bytes();
            text.windows(dir.len()).any(|window| window == dir)
        })
    };
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|&pid| pid != own)
        .filter(|pid| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|text| names_one(&text)))
        .filter_map(|pid| i32::try_from(pid).ok())
        .collect()
}

/// A program about to be run; used for `nspawn-run`, and for any other with [`Invocation::new`].
#[derive(Debug)]
pub struct Invocation {
    command: Command,
    stdin: Option<Vec<u8>>,
    timeout: Duration,
}

impl Invocation {
    /// A program without arguments. Its standard input is empty.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            command: Command::new(program),
            stdin: None,
            timeout: TIMEOUT,
        }
    }

    /// Adds an argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// Adds arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.command.args(arguments);
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// Removes an environment variable.
    pub fn env_remove(mut self, key: impl AsRef<OsStr>) -> Self {
        self.command.env_remove(key);
        self
    }

    /// Runs it in this folder.
    pub fn current_dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Gives it these bytes on standard input.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// Kills it after this time; 120 s unless set.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Starts it.
    ///
    /// # Panics
    ///
    /// Where it cannot be started.
    #[track_caller]
    pub fn spawn(mut self) -> Running {
        let stdin = if self.stdin.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        };
        self.command
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let start = Instant::now();
        let shown = format!("{:?}", self.command);
        let mut child = self
            .command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {shown}: {error}"));
        if let (Some(bytes), Some(mut pipe)) = (self.stdin, child.stdin.take()) {
            thread::spawn(move || {
                let _ = pipe.write_all(&bytes); // a child that reads no input is fine
            });
        }
        let stdout = Collected::start(child.stdout.take().expect("stdout is piped"));
        let stderr = Collected::start(child.stderr.take().expect("stderr is piped"));
        Running {
            child,
            shown,
            start,
            deadline: start + self.timeout,
            stdout,
            stderr,
        }
    }

    /// Runs it to its end.
    ///
    /// # Panics
    ///
    /// Where it cannot be started, or does not end in time: then with all that it printed.
    #[track_caller]
    pub fn run(self) -> Finished {
        self.spawn().finish()
    }
}

/// A program that runs; killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    shown: String,
    start: Instant,
    deadline: Instant,
    stdout: Collected,
    stderr: Collected,
}

impl Running {
    /// Its process id.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a process id fits")
    }

    /// Sends a signal, `libc::SIGTERM` for one.
    ///
    /// # Panics
    ///
    /// Where it has been waited for already.
    #[track_caller]
    pub fn signal(&self, signal: i32) {
        sys::kill(self.pid(), signal)
            .unwrap_or_else(|error| panic!("{}: signal {signal}: {error}", self.shown));
    }

    /// Waits for a line on standard output that holds `text`, and returns it. Lines already seen do not count again.
    ///
    /// # Panics
    ///
    /// Where the output or the time ends first.
    #[track_caller]
    pub fn wait_for_stdout(&self, text: &str) -> String {
        self.wait_for("standard output", &self.stdout, text)
    }

    /// The same for standard error.
    ///
    /// # Panics
    ///
    /// Where the output or the time ends first.
    #[track_caller]
    pub fn wait_for_stderr(&self, text: &str) -> String {
        self.wait_for("standard error", &self.stderr, text)
    }

    #[track_caller]
    fn wait_for(&self, name: &str, stream: &Collected, text: &str) -> String {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            let why = match stream.lines.recv_timeout(left) {
                Ok(line) if line.contains(text) => return line,
                Ok(_) => continue,
                Err(RecvTimeoutError::Timeout) => "in time",
                Err(RecvTimeoutError::Disconnected) => "before its end",
            };
            panic!(
                "{}: no line with {text:?} on {name} {why}\n--- stdout\n{}--- stderr\n{}",
                self.shown,
                self.stdout.so_far(),
                self.stderr.so_far()
            );
        }
    }

    /// Waits for its end.
    ///
    /// # Panics
    ///
    /// Where it does not end in time: it is killed, and what it printed is shown.
    #[track_caller]
    pub fn finish(mut self) -> Finished {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let Some(status) = wait::child(&mut self.child, left) else {
            let _ = self.child.kill();
            let _ = self.child.wait();
            panic!(
                "{} did not end in {:.0} s\n--- stdout\n{}--- stderr\n{}",
                self.shown,
                self.start.elapsed().as_secs_f64(),
                self.stdout.so_far(),
                self.stderr.so_far()
            );
        };
        let elapsed = self.start.elapsed();
        // A background process may hold the pipes open: what was printed by then is what counts.
        let stdout = self.stdout.all(Duration::from_secs(2));
        let stderr = self.stderr.all(Duration::from_secs(2));
        Finished {
            shown: self.shown.clone(),
            status,
            stdout,
            stderr,
            elapsed,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}

/// One stream, read to its end in a thread: line by line for who waits, and as a whole.
#[derive(Debug)]
struct Collected {
    bytes: Arc<Mutex<Vec<u8>>>,
    lines: Receiver<String>,
    reader: Option<JoinHandle<()>>,
}

impl Collected {
    fn start(stream: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let (sender, lines) = mpsc::channel();
        let shared = Arc::clone(&bytes);
        let reader = thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            while stream
                .read_until(b'\n', &mut line)
                .is_ok_and(|count| count > 0)
            {
                shared
                    .lock()
                    .expect("no reader panics")
                    .extend_from_slice(&line);
                let _ = sender.send(String::from_utf8_lossy(&line).trim_end().to_owned()); // nobody need listen
                line.clear();
            }
        });
        Self {
            bytes,
            lines,
            reader: Some(reader),
        }
    }

    fn so_far(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().expect("no reader panics")).into_owned()
    }

    fn all(&mut self, patience: Duration) -> String {
        if let Some(reader) = self.reader.take() {
            let ended = wait::until(patience, || reader.is_finished().then_some(()));
            if ended.is_some() {
                let _ = reader.join();
            }
        }
        self.so_far()
    }
}

/// A program that has ended.
#[derive(Clone, Debug)]
pub struct Finished {
    shown: String,
    /// How it ended.
    pub status: ExitStatus,
    /// All of its standard output.
    pub stdout: String,
    /// All of its standard error.
    pub stderr: String,
    /// From its start to its end.
    pub elapsed: Duration,
}

impl Finished {
    /// The exit code; 128 and the signal where a signal ended it, as a shell has it.
    pub fn code(&self) -> i32 {
        self.status
            .code()
            .or_else(|| Some(128 + self.status.signal()?))
            .expect("it ended by a code or a signal")
    }

    /// Panics, with all that was printed, unless it ended with this exit code; returns itself for more.
    ///
    /// # Panics
    ///
    /// Where the code is another one.
    #[track_caller]
    pub fn expect_code(&self, code: i32) -> &Self {
        assert!(
            self.code() == code,
            "expected exit code {code}, got {}\n{}",
            self.code(),
            self.transcript()
        );
        self
    }

    /// Panics, with all that was printed, unless standard error holds `text`; returns itself for more.
    ///
    /// # Panics
    ///
    /// Where the text is not there.
    #[track_caller]
    pub fn expect_stderr(&self, text: &str) -> &Self {
        assert!(
            self.stderr.contains(text),
            "expected on standard error: {text:?}\n{}",
            self.transcript()
        );
        self
    }

    /// Panics, with all that was printed, unless standard output holds `text`; returns itself for more.
    ///
    /// # Panics
    ///
    /// Where the text is not there.
    #[track_caller]
    pub fn expect_stdout(&self, text: &str) -> &Self {
        assert!(
            self.stdout.contains(text),
            "expected on standard output: {text:?}\n{}",
            self.transcript()
        );
        self
    }

    /// The command line, how it ended, and all that it printed.
    pub fn transcript(&self) -> String {
        format!(
            "$ {}\n{} after {:.2} s\n--- stdout\n{}--- stderr\n{}",
            self.shown,
            self.status,
            self.elapsed.as_secs_f64(),
            self.stdout,
            self.stderr
        )
    }
}

/// A list of arguments of mixed kinds: `args!["unit", &path, "--name", "web"]`.
#[macro_export]
macro_rules! args {
    ($($argument:expr),* $(,)?) => {
        [$(::std::ffi::OsString::from($argument)),*]
    };
}

/// The type that [`args!`](crate::args) makes a list of.
pub type Argument = OsString;

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Invocation {
        Invocation::new("sh").args(["-c", script])
    }

    #[test]
    fn streams_and_code_are_kept_apart() {
        let finished = shell("cat; echo err >&2; exit 7").stdin("in\n").run();
        finished
            .expect_code(7)
            .expect_stdout("in\n")
            .expect_stderr("err\n");
    }

    #[test]
    fn a_signal_is_128_and_its_number() {
        shell("kill -TERM $$")
            .run()
            .expect_code(128 + libc::SIGTERM);
    }

    #[test]
    fn a_line_is_awaited() {
        let running = shell("echo one; echo ready; sleep 60").spawn();
        assert_eq!(running.wait_for_stdout("ready"), "ready");
        running.signal(libc::SIGTERM);
        running.finish().expect_code(128 + libc::SIGTERM);
    }

    #[test]
    #[should_panic(expected = "did not end in")]
    fn a_program_that_hangs_is_killed() {
        shell("echo before; sleep 60")
            .timeout(Duration::from_millis(200))
            .run();
    }
}
