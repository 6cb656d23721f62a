//! From Enter to a running unit, against the peers in the same run. Unit: seconds of wall time.
//!
//! * `host`: `nspawn-run unit` in image `host`, network and mapped users included, against a bare
//!   `systemd-nspawn -D / --volatile=yes -b` with the same unit on its unit path. What the bare one needs of a host
//!   without systemd (a cgroup of its own below a private cgroup2) is done before its clock starts; ours does the same
//!   on its own time. Goal: at most twice as long.
//! * `pull`: `nspawn-run unit --image URL` with an empty store, to the running unit, against `machinectl pull-raw
//!   --verify=no` of that URL, which only puts the image there. Both in one systemd host inside a machine, from one web
//!   server outside of it; the clock of ours includes starting a transient service there. Goal: faster.
//!
//! In both the clock stops when the unit's first process writes into a FIFO of the host's; then, with the clock stopped,
//! the guest's systemd must say that the unit is active, and machined that the image is there. The page cache is warm,
//! and is written back before every run.
#![allow(missing_docs)]

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use nspawn_benches::process::Cost;
use nspawn_benches::program::nspawn_run;
use nspawn_benches::table::{Goal, Row};
use nspawn_benches::{median, rounds, wanted};
use nspawn_tests::cli::{Finished, Invocation};
use nspawn_tests::fixture::{DISK_SIZE, Debian};
use nspawn_tests::host::{HostLock, alone};
use nspawn_tests::http::{HttpServer, Resource};
use nspawn_tests::scratch;
use nspawn_tests::systemd_host::{OUTER_ADDRESS, SCRATCH, SystemdHost};
use nspawn_tests::wait;

/// What ends a hung run.
const LIMIT: Duration = Duration::from_secs(120);
/// What ends a pull of the peer's, in seconds, and how often it is tried.
const PEER_LIMIT: &str = "60";
const PEER_TRIES: usize = 3;
/// Source: timeout(1).
const TIMED_OUT: i32 = 124;
/// Where a machine has the folder with the FIFO.
const GUEST_DIR: &str = "/bench";
const UNIT: &str =
    "[Service]\nExecStart=/bin/sh -c 'echo started >/bench/started; exec sleep infinity'\n";
const MACHINE: &str = "bench";

fn main() {
    let lock = alone();
    let program = nspawn_run();
    if wanted("startup/host") {
        let (ours, peer) = host(&program);
        tell("startup/host", "systemd-nspawn", &ours, &peer, 2.0);
    }
    if wanted("startup/pull") {
        let (ours, peer) = pull(&lock, &program);
        tell("startup/pull", "machinectl pull-raw", &ours, &peer, 1.0);
    }
}

fn tell(name: &str, peer: &str, ours: &[Duration], theirs: &[Duration], goal: f64) {
    let row = Row {
        name,
        size: "",
        peer,
        ours: Cost::of_time(median(ours)),
        theirs: Some(Cost::of_time(median(theirs))),
        goals: &[Goal::Ended(goal)],
    };
    row.tell();
}

/// A folder with a FIFO that the unit writes into the moment it runs.
struct Signal {
    dir: PathBuf,
    arrived: Receiver<Instant>,
}

impl Signal {
    fn new(dir: &Path) -> Self {
        fs::create_dir_all(dir).unwrap();
        let fifo = dir.join("started");
        let _ = fs::remove_file(&fifo);
        succeed(
            Invocation::new("mkfifo")
                .args(["-m", "666"])
                .arg(&fifo)
                .run(),
        );
        // Open for both, so that neither opening nor a late writer blocks.
        let mut file = File::options().read(true).write(true).open(&fifo).unwrap();
        let (sender, arrived) = mpsc::channel();
        thread::spawn(move || {
            let mut byte = [0];
            if file.read_exact(&mut byte).is_ok() {
                let _ = sender.send(Instant::now()); // nobody waits any more
            }
        });
        Self {
            dir: dir.to_owned(),
            arrived,
        }
    }

    fn wait(&self) -> Instant {
        let arrived = self.arrived.recv_timeout(LIMIT);
        arrived.expect("the unit does not run in time")
    }
}

fn succeed(finished: Finished) -> Finished {
    finished.expect_code(0);
    finished
}

/// The state of the unit as systemctl tells it, once it is more than "activating".
fn assert_active(ask: impl Fn() -> Invocation) {
    let active = wait::until(Duration::from_secs(5), || {
        let finished = ask()
            .args(["systemctl", "is-active", "bench.service"])
            .run();
        (finished.stdout.trim() == "active").then_some(())
    });
    assert!(active.is_some(), "the unit is not active");
}

/// Nothing of an earlier run is left to be written to the disk.
fn settle() {
    succeed(Invocation::new("sync").run());
}

fn host(program: &Path) -> (Vec<Duration>, Vec<Duration>) {
    let state = scratch::on_disk();
    let unit = state.path().join("bench.service");
    fs::write(&unit, UNIT).unwrap();
    let signal_dir = state.path().join("signal");
    let pairs = (0..rounds()).map(|round| {
        let run = |ours: bool| {
            settle();
            let signal = Signal::new(&signal_dir);
            if ours {
                ours_from_host(program, state.path(), &unit, &signal)
            } else {
                bare_from_host(state.path(), &unit, &signal)
            }
        };
        let first = run(round % 2 == 0);
        let second = run(round % 2 != 0);
        if round % 2 == 0 {
            (first, second)
        } else {
            (second, first)
        }
    });
    pairs.unzip()
}

fn ours_from_host(program: &Path, state: &Path, unit: &Path, signal: &Signal) -> Duration {
    let nspawn_run = || {
        Invocation::new(program)
            .arg("--root")
            .arg(state.join("root"))
            .arg("--run-root")
            .arg(state.join("run"))
    };
    let bind = format!("{}:{GUEST_DIR}", signal.dir.display());
    let start = Instant::now();
    let running = nspawn_run()
        .args(["unit", "--name", MACHINE, "--bind", &bind])
        .arg(unit)
        .timeout(LIMIT)
        .spawn();
    let time = signal.wait() - start;
    assert_active(|| nspawn_run().args(["exec", MACHINE, "--"]));
    succeed(nspawn_run().args(["stop", MACHINE]).run());
    running.finish();
    time
}

/// What a host without systemd needs before systemd-nspawn starts: `$1` is the name of the cgroup. The clock starts with
/// the line that it then reads.
const ENTER: &str = r#"
set -e
if mountpoint -q /sys/fs/cgroup; then umount -R /sys/fs/cgroup; fi
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir "/sys/fs/cgroup/$1"
echo $$ > "/sys/fs/cgroup/$1/cgroup.procs"
mkdir -p /run/systemd/nspawn
mount -t tmpfs -o mode=0755 tmpfs /run/systemd/nspawn
shift
echo prepared
read -r go
exec "$@"
"#;

const LEAVE: &str = r#"
if mountpoint -q /sys/fs/cgroup; then umount -R /sys/fs/cgroup; fi
mount -t cgroup2 cgroup2 /sys/fs/cgroup
cd /sys/fs/cgroup && [ ! -d "$1" ] || find "$1" -depth -type d -exec rmdir {} +
"#;

fn bare_from_host(state: &Path, unit: &Path, signal: &Signal) -> Duration {
    let local = state.join("local/systemd");
    let wants = local.join("multi-user.target.d");
    fs::create_dir_all(&wants).unwrap();
    fs::copy(unit, local.join("bench.service")).unwrap();
    fs::write(wants.join("wants.conf"), "[Unit]\nWants=bench.service\n").unwrap();
    // It would stop the boot at a prompt.
    let mask = local.join("systemd-firstboot.service");
    let _ = fs::remove_file(&mask);
    std::os::unix::fs::symlink("/dev/null", mask).unwrap();

    let cgroup = format!("nspawn-bench-{}", std::process::id());
    let mut child = Command::new("unshare")
        .args([
            "--mount",
            "--propagation=private",
            "--",
            "sh",
            "-c",
            ENTER,
            "sh",
            &cgroup,
        ])
        .args([
            "systemd-nspawn",
            "--directory=/",
            "--volatile=yes",
            "--boot",
            "--quiet",
        ])
        .args([
            "--settings=no",
            "--register=no",
            "--keep-unit",
            "--link-journal=no",
        ])
        .args([&format!("--machine={MACHINE}"), "--console=read-only"])
        .arg(format!(
            "--bind-ro={}:/local",
            state.join("local").display()
        ))
        .arg("--setenv=SYSTEMD_UNIT_PATH=/local/systemd:")
        .arg(format!("--bind={}:{GUEST_DIR}", signal.dir.display()))
        .env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("unshare runs");
    let mut said = child.stdout.take().unwrap();
    let mut prepared = [0; 9];
    said.read_exact(&mut prepared)
        .expect("the host can be prepared");
    // What the console says must not fill the pipe.
    thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
    let mut go = child.stdin.take().unwrap();
    let start = Instant::now();
    std::io::Write::write_all(&mut go, b"go\n").unwrap();
    let time = signal.wait() - start;
    let leader = leader(&child);
    let enter = format!("--target={leader}");
    assert_active(|| Invocation::new("nsenter").args([&enter, "--all"]));
    // SIGTERM is an orderly shutdown. Source: systemd-nspawn(1).
    succeed(Invocation::new("kill").arg(child.id().to_string()).run());
    if wait::child(&mut child, Duration::from_secs(30)).is_none() {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let leave = [
        "--mount",
        "--propagation=private",
        "--",
        "sh",
        "-c",
        LEAVE,
        "sh",
        &cgroup,
    ];
    succeed(Invocation::new("unshare").args(leave).run());
    time
}

/// The machine's PID 1: systemd-nspawn's only child once the machine is up.
fn leader(nspawn: &Child) -> i32 {
    let pid = nspawn.id();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    children.trim().parse().expect("one child")
}

fn pull(lock: &HostLock, program: &Path) -> (Vec<Duration>, Vec<Duration>) {
    let host = SystemdHost::boot(lock);
    let server = HttpServer::on(OUTER_ADDRESS.into());
    server.put("/debian.qcow2", Resource::file(Debian::Qcow2.path()));
    let url = server.url("/debian.qcow2");
    fs::write(host.scratch().join("bench.service"), UNIT).unwrap();
    let pairs = (0..rounds()).map(|round| {
        let run = |ours: bool| {
            settle();
            if ours {
                ours_from_url(&host, program, &url)
            } else {
                machinectl_pull(&host, &url)
            }
        };
        let first = run(round % 2 == 0);
        let second = run(round % 2 != 0);
        if round % 2 == 0 {
            (first, second)
        } else {
            (second, first)
        }
    });
    let times = pairs.unzip();
    host.power_off();
    times
}

fn ours_from_url(host: &SystemdHost, program: &Path, url: &str) -> Duration {
    let signal = Signal::new(&host.scratch().join("signal"));
    let root = host.scratch().join("root");
    assert!(!root.exists(), "the store is not empty");
    let nspawn_run = [
        program.to_str().unwrap(),
        "--root",
        &format!("{SCRATCH}/root"),
    ]
    .map(str::to_owned);
    let unit = format!("{SCRATCH}/bench.service");
    let bind = format!("{SCRATCH}/signal:{GUEST_DIR}");
    let start = Instant::now();
    let running = host
        .service(&nspawn_run)
        .args([
            "unit",
            "--name",
            MACHINE,
            "--verify=no",
            "--image",
            url,
            "--bind",
            &bind,
            &unit,
        ])
        .timeout(LIMIT)
        .spawn();
    let time = signal.wait() - start;
    assert_active(|| host.command(&nspawn_run).args(["exec", MACHINE, "--"]));
    succeed(host.command(&nspawn_run).args(["stop", MACHINE]).run());
    running.finish();
    fs::remove_dir_all(root).unwrap();
    time
}

fn machinectl_pull(host: &SystemdHost, url: &str) -> Duration {
    let machines = host.scratch().join("machines");
    assert_eq!(
        fs::read_dir(&machines).unwrap().count(),
        0,
        "an image is there already"
    );
    let time = (0..PEER_TRIES).find_map(|_| {
        let pull = [
            "timeout",
            PEER_LIMIT,
            "machinectl",
            "pull-raw",
            "--verify=no",
            url,
            MACHINE,
        ];
        let start = Instant::now();
        let pulled = host.command(pull).timeout(LIMIT).run();
        let time = start.elapsed();
        if pulled.code() != TIMED_OUT {
            succeed(pulled);
            return Some(time);
        }
        // systemd-pull 252 waits for ever at times, for one of the files beside the image that are not there.
        succeed(
            host.command(["systemctl", "restart", "systemd-importd"])
                .run(),
        );
        for entry in fs::read_dir(&machines).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        None
    });
    let time = time.expect("machinectl pull-raw ends");
    let image = machines.join(format!("{MACHINE}.raw"));
    assert_eq!(image.metadata().unwrap().len(), DISK_SIZE);
    succeed(
        Invocation::new("cmp")
            .args([&image, &Debian::Raw.path()])
            .run(),
    );
    succeed(host.command(["machinectl", "show-image", MACHINE]).run());
    succeed(host.command(["machinectl", "clean", "--all"]).run());
    time
}
