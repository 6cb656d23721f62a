//! Where a test boots machines: a private state, names that no other test has, unit files, and a look at what is left.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use crate::cli::{Argument, Cli, Finished, Invocation};
use crate::host::{self, HostLock, HostSnapshot};
use crate::{scratch, wait};

/// How long the kernel and the program may take to clear up.
const SETTLE: Duration = Duration::from_secs(10);

/// One test's machines; see the module.
///
/// ```no_run
/// use nspawn_tests::scene::Scene;
///
/// let scene = Scene::new();
/// let unit = scene.script("web.service", "echo hello");
/// scene.run_unit(&unit, &["--network", "none"]).expect_code(0).expect_stdout("hello\n");
/// scene.end();
/// ```
#[derive(Debug)]
pub struct Scene {
    cli: Cli,
    tag: String,
    dir: TempDir,
    /// The whole host before, for a test that has it to itself.
    before: Option<HostSnapshot>,
    _lock: HostLock,
}

impl Scene {
    /// For a test beside others.
    #[expect(clippy::new_without_default, reason = "it makes folders")]
    pub fn new() -> Self {
        Self::with(host::shared(), None)
    }

    /// For a test that has the host to itself: [`end`](Self::end) then looks at all of it.
    pub fn alone() -> Self {
        let lock = host::alone();
        let before = HostSnapshot::take();
        Self::with(lock, Some(before))
    }

    fn with(lock: HostLock, before: Option<HostSnapshot>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        // short: a link's name has 15 bytes, and the tag must be in it as a whole
        let tag = format!("{}{:0>2}", base36(std::process::id()), base36(count));
        let dir = scratch::on_disk();
        // the machine's root, another user of the host, passes here to what is bound
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(dir.path(), open).expect("our own folder");
        Self {
            cli: Cli::new(),
            tag,
            dir,
            before,
            _lock: lock,
        }
    }

    /// The program with its private folders.
    pub fn cli(&self) -> &Cli {
        &self.cli
    }

    /// A machine's name that no other test has.
    pub fn name(&self, name: &str) -> String {
        format!("{}-{name}", self.tag)
    }

    /// A folder for this test's files.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a file below [`dir`](Self::dir).
    ///
    /// # Panics
    ///
    /// Where it cannot be written.
    pub fn write(&self, path: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.dir().join(path);
        let parent = path.parent().expect("below the folder");
        fs::create_dir_all(parent).expect("our own folder");
        fs::write(&path, bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        path
    }

    /// A unit file of a service that runs a shell script, with more lines for its section `[Service]`.
    pub fn service(&self, name: &str, script: &str, settings: &str) -> PathBuf {
        let quoted = script
            .replace('\\', "\\\\")
            .replace('%', "%%")
            .replace('$', "$$");
        let quoted = quoted.replace('"', "\\\"").replace('\n', "\\n");
        self.write(
            name,
            format!("[Service]\nExecStart=/bin/sh -c \"{quoted}\"\n{settings}\n"),
        )
    }

    /// A unit file of a plain service that runs a shell script.
    pub fn script(&self, name: &str, script: &str) -> PathBuf {
        self.service(name, script, "")
    }

    /// `nspawn-run ARGUMENTS`.
    pub fn command<A: Into<OsString>>(&self, arguments: impl IntoIterator<Item = A>) -> Invocation {
        self.cli.command(arguments.into_iter().map(Into::into))
    }

    /// Runs `nspawn-run ARGUMENTS` to its end.
    #[track_caller]
    pub fn run<A: Into<OsString>>(&self, arguments: impl IntoIterator<Item = A>) -> Finished {
        self.command(arguments).run()
    }

    /// `nspawn-run unit FILE --name NAME OPTIONS`, the machine being named after the file.
    pub fn unit(&self, file: &Path, options: &[&str]) -> Invocation {
        let stem = file.file_stem().expect("a file").to_string_lossy();
        let name = self.name(&stem.replace('@', "-"));
        let mut arguments: Vec<Argument> = vec!["unit".into(), file.into(), "--name".into()];
        arguments.push(name.into());
        arguments.extend(options.iter().map(OsString::from));
        self.command(arguments)
    }

    /// Runs it to its end.
    #[track_caller]
    pub fn run_unit(&self, file: &Path, options: &[&str]) -> Finished {
        self.unit(file, options).run()
    }

    /// The record of a machine, from `status --format json`.
    ///
    /// # Panics
    ///
    /// Where there is none.
    #[track_caller]
    pub fn status(&self, name: &str) -> serde_json::Value {
        let finished = self.run(["status", name, "--format", "json"]);
        finished.expect_code(0);
        serde_json::from_str(&finished.stdout)
            .unwrap_or_else(|error| panic!("{error}\n{}", finished.transcript()))
    }

    /// What is left of the machines now, a line each: mounts, loop devices, cgroups, interfaces, processes, and files
    /// of machines. Images in the store do not count.
    pub fn leftovers(&self) -> String {
        let words = [
            self.cli.root().display().to_string(),
            self.cli.run_root().display().to_string(),
            format!("-{}-", self.tag),
        ];
        let mut text = HostSnapshot::naming(&words).text();
        for dir in [self.cli.root(), self.cli.run_root()] {
            for part in ["machines", "orders"] {
                for entry in fs::read_dir(dir.join(part)).into_iter().flatten().flatten() {
                    text += &format!("entry {}\n", entry.path().display());
                }
            }
        }
        text
    }

    /// Panics unless nothing becomes left of the machines, within 10 s.
    ///
    /// # Panics
    ///
    /// Where something was left behind.
    #[track_caller]
    pub fn assert_clean(&self) {
        let mut left = String::new();
        let clean = wait::until(SETTLE, || {
            left = self.leftovers();
            left.is_empty().then_some(())
        });
        assert!(clean.is_some(), "left behind:\n{left}");
    }

    /// The end of the test: nothing may be left.
    ///
    /// # Panics
    ///
    /// Where something was left behind.
    #[track_caller]
    pub fn end(self) {
        self.assert_clean();
        if let Some(before) = &self.before {
            before.assert_unchanged();
        }
    }
}

fn base36(number: u32) -> String {
    let digit = |value: u32| char::from_digit(value, 36).unwrap_or('0');
    let mut digits: Vec<char> =
        std::iter::successors(Some(number), |n| (*n >= 36).then_some(n / 36))
            .map(|n| digit(n % 36))
            .collect();
    digits.reverse();
    digits.into_iter().collect()
}
