//! A host whose PID 1 is systemd, inside a machine, whatever the outer host runs.
//!
//! It has machined, importd, networkd, resolved, udevd and D-Bus, loop devices, and cgroup2. The workspace and the target
//! folder are bound read-only under their own paths: a fixture and the built program are found where they are outside.
//!
//! How it is booted, and why so:
//!
//! * In a mount namespace of its own with one cgroup2 mount at `/sys/fs/cgroup`: systemd-nspawn looks there to choose the
//!   hierarchy it gives to the payload, and a hybrid one would be of no use.
//! * In a fresh cgroup: `--keep-unit` puts the payload below the caller's, where remains of another boot may be.
//! * With every capability, no system call filter and a writable `/sys`: machines are booted in there in turn, and udevd
//!   does not start on a read-only `/sys`.
//! * `/dev` in there is a tmpfs. Nodes of loop devices are made by the fixture; the outer `/dev` is bound at
//!   `/run/outer-dev` for nodes of partitions, which the kernel makes there alone.
//! * systemd in there removes loop devices that it is done with, and the nodes are gone outside too: those that were there
//!   are made again afterwards.
//!
//! Limits: the program under test runs with the fixture's C library, so an outer host newer than that cannot lend it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::cli::Invocation;
use crate::host::HostLock;
use crate::{fixture, scratch, sys, wait};

/// The machine's name; its interface outside is `ve-` and this, 15 bytes, the most that Linux allows.
const NAME: &str = "systemd-host";
/// The outer end of its link: where a server must listen to be reached from inside.
pub const OUTER_ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 18, 99, 1);
/// The host's own address, which the fixture sets.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 18, 99, 2);
/// Where [`SystemdHost::scratch`] is inside.
pub const SCRATCH: &str = "/scratch";

const BOOT_TIMEOUT: Duration = Duration::from_secs(90);
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// Folders below the scratch folder that are bound over those of the fixture, so that a boot starts with empty ones.
const STATE: [(&str, &str, u32); 3] = [
    ("machines", "/var/lib/machines", 0o700),
    ("nspawn-run", "/var/lib/nspawn-run", 0o755),
    ("tmp", "/var/tmp", 0o1777),
];
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Replaces the cgroup mounts by a cgroup2, enters the new cgroup `$1`, and becomes the rest of the arguments.
///
/// Only one systemd host is up at a time: other cgroups of that name are those of killed tests. The program dies with
/// the test, so that even a killed one leaves no host behind.
const ENTER: &str = r#"
set -e
if mountpoint -q /sys/fs/cgroup; then umount -R /sys/fs/cgroup; fi
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for stale in /sys/fs/cgroup/nspawn-tests-systemd-host-*; do
  [ ! -d "$stale" ] || find "$stale" -depth -type d -exec rmdir {} + || true
done
mkdir "/sys/fs/cgroup/$1"
echo $$ > "/sys/fs/cgroup/$1/cgroup.procs"
shift
exec setpriv --pdeathsig=KILL "$@"
"#;

/// Removes the cgroup `$1` and those below it, the deepest first.
const REMOVE_CGROUP: &str = r#"
if mountpoint -q /sys/fs/cgroup; then umount -R /sys/fs/cgroup; fi
mount -t cgroup2 cgroup2 /sys/fs/cgroup
cd /sys/fs/cgroup && [ ! -d "$1" ] || find "$1" -depth -type d -exec rmdir {} +
"#;

/// A systemd host that is up; powered off when dropped.
#[derive(Debug)]
pub struct SystemdHost {
    nspawn: Child,
    leader: i32,
    cgroup: String,
    scratch: TempDir,
    loop_nodes: Vec<u32>,
    is_down: bool,
    _only_one: File,
}

impl SystemdHost {
    /// Boots it, in 2 s or so. Waits for the one that another test has up.
    ///
    /// `lock` says that the test boots machines: [`shared`](crate::host::shared), or [`alone`](crate::host::alone) where
    /// the test compares the outer host before and after.
    ///
    /// # Panics
    ///
    /// Where it does not come up: then with the console's last lines.
    pub fn boot(_lock: &HostLock) -> Self {
        let root = fixture::systemd_host_root();
        let only_one_path = root.with_file_name("lock");
        let only_one = File::create(&only_one_path)
            .unwrap_or_else(|e| panic!("{}: {e}", only_one_path.display()));
        only_one.lock().expect("a lock");

        let scratch = scratch::on_disk();
        let sockets = scratch::for_sockets();
        let notify_path = sockets.path().join("notify");
        let notify = UnixDatagram::bind(&notify_path).expect("a notify socket");
        let loop_nodes = (0..8)
            .filter(|number| Path::new(&format!("/dev/loop{number}")).exists())
            .collect();
        let cgroup = format!("nspawn-tests-{NAME}-{}", std::process::id());
        let console = File::create(scratch.path().join("console.log")).expect("a console log");
        let nspawn = Command::new("unshare")
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
            .args(nspawn_arguments(&root, scratch.path()))
            .env("NOTIFY_SOCKET", &notify_path)
            .env("SYSTEMD_SECCOMP", "0")
            .env("SYSTEMD_NSPAWN_API_VFS_WRITABLE", "1")
            .env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1")
            .stdin(Stdio::null())
            .stderr(console.try_clone().expect("a second descriptor"))
            .stdout(console)
            .spawn()
            .expect("unshare runs");
        // From here on, a panic ends what was started.
        let mut host = Self {
            nspawn,
            leader: 0,
            cgroup,
            scratch,
            loop_nodes,
            is_down: false,
            _only_one: only_one,
        };
        host.wait_until_ready(&notify);
        host
    }

    fn wait_until_ready(&mut self, notify: &UnixDatagram) {
        let deadline = Instant::now() + BOOT_TIMEOUT;
        let mut datagram = [0; 4096];
        loop {
            // A datagram, or the end of the program: looked for once a second.
            notify
                .set_read_timeout(Some(Duration::from_secs(1)))
                .expect("a limit");
            let text = match notify.recv(&mut datagram) {
                Ok(length) => String::from_utf8_lossy(&datagram[..length]).into_owned(),
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                    ) =>
                {
                    let ended = self.nspawn.try_wait().expect("the child is ours");
                    assert!(
                        ended.is_none(),
                        "systemd-nspawn ended with {ended:?}\n{}",
                        self.console()
                    );
                    assert!(
                        Instant::now() < deadline,
                        "the systemd host is not up in time\n{}",
                        self.console()
                    );
                    continue;
                }
                Err(error) => panic!("cannot read the notify socket: {error}"),
            };
            for line in text.lines() {
                if let Some(pid) = line.strip_prefix("X_NSPAWN_LEADER_PID=") {
                    self.leader = pid.parse().expect("a process id");
                    self.set_outer_address();
                }
                if line == "READY=1" {
                    assert!(self.leader > 0, "ready without a leader");
                    return;
                }
            }
        }
    }

    fn set_outer_address(&self) {
        let interface = format!("ve-{NAME}");
        let address = format!("{OUTER_ADDRESS}/24");
        for arguments in [
            ["address", "replace", &address, "dev", &interface],
            ["link", "set", "dev", &interface, "up"],
        ] {
            Invocation::new("ip").args(arguments).run().expect_code(0);
        }
    }

    /// A command inside, as a child of the test: enough for `systemctl`, `machinectl`, `busctl` and the like.
    pub fn command<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Invocation {
        Invocation::new("nsenter")
            .arg(format!("--target={}", self.leader))
            .args([
                "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd",
            ])
            .args(["env", "-i", PATH, "HOME=/root", "LANG=C.UTF-8", "TERM=dumb"])
            .args(arguments)
    }

    /// A command inside, as a transient service with a delegated cgroup: what runs systemd-nspawn needs that.
    ///
    /// Streams and exit code are the command's own.
    pub fn service<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Invocation {
        self.command([
            "systemd-run",
            "--quiet",
            "--wait",
            "--collect",
            "--pipe",
            "--property=Delegate=yes",
        ])
        .args([
            "--setenv=HOME=/root",
            "--setenv=LANG=C.UTF-8",
            &format!("--setenv={PATH}"),
            "--",
        ])
        .args(arguments)
    }

    /// The leader: its PID 1, as an outer PID.
    pub fn leader(&self) -> i32 {
        self.leader
    }

    /// A folder, empty at first but for the host's own state, that is [`SCRATCH`] inside. Gone with this value.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// The last lines of the console.
    pub fn console(&self) -> String {
        let bytes = fs::read(self.scratch.path().join("console.log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Powers it off, in order, and gives the outer host back as it was.
    ///
    /// # Panics
    ///
    /// Where it had to be killed, or something could not be put back.
    pub fn power_off(mut self) {
        if let Err(problem) = self.take_down() {
            panic!("{problem}\n{}", self.console());
        }
    }

    fn take_down(&mut self) -> Result<(), String> {
        if std::mem::replace(&mut self.is_down, true) {
            return Ok(());
        }
        let mut problem = None;
        if self.leader > 0 {
            // Source: systemd(1), "SIGRTMIN+4: powers off the machine". A leader that is gone is fine.
            let _ = sys::kill(self.leader, sys::realtime_signal(4));
        }
        let patience = if self.leader > 0 {
            STOP_TIMEOUT
        } else {
            Duration::ZERO
        };
        if wait::child(&mut self.nspawn, patience).is_none() {
            problem = (self.leader > 0)
                .then(|| format!("the systemd host did not power off in {STOP_TIMEOUT:?}"));
            for pid in [
                self.leader,
                i32::try_from(self.nspawn.id()).expect("a process id fits"),
            ] {
                if pid > 0 {
                    let _ = sys::kill(pid, libc::SIGKILL); // it may be gone
                }
            }
            let _ = self.nspawn.wait();
        }
        let removed = Command::new("unshare")
            .args([
                "--mount",
                "--propagation=private",
                "--",
                "sh",
                "-c",
                REMOVE_CGROUP,
                "sh",
                &self.cgroup,
            ])
            .output();
        match removed {
            Ok(output) if output.status.success() => {}
            Ok(output) => {
                problem.get_or_insert(format!(
                    "{}: {}",
                    self.cgroup,
                    String::from_utf8_lossy(&output.stderr)
                ));
            }
            Err(error) => {
                problem.get_or_insert(format!("cannot run unshare: {error}"));
            }
        }
        for &number in &self.loop_nodes {
            if !Path::new(&format!("/dev/loop{number}")).exists()
                && let Err(error) = sys::add_loop_device(number)
            {
                problem.get_or_insert(format!("cannot make /dev/loop{number} again: {error}"));
            }
        }
        problem.map_or(Ok(()), Err)
    }
}

impl Drop for SystemdHost {
    fn drop(&mut self) {
        let _ = self.take_down(); // an early return or a panic got here
    }
}

fn nspawn_arguments(root: &Path, scratch: &Path) -> Vec<String> {
    let bind =
        |kind: &str, outer: &Path, inner: &str| format!("--{kind}={}:{inner}", outer.display());
    let mut arguments: Vec<String> = [
        "systemd-nspawn",
        "--quiet",
        "--boot",
        "--settings=no",
        "--register=no",
        "--keep-unit",
        "--capability=all",
        "--network-veth",
        "--resolv-conf=off",
        "--link-journal=no",
        "--notify-ready=yes",
        "--console=read-only",
    ]
    .map(str::to_owned)
    .into();
    arguments.push(format!("--machine={NAME}"));
    arguments.push(format!("--directory={}", root.display()));
    arguments.push(bind("bind", Path::new("/dev"), "/run/outer-dev"));
    for device in ["/dev/loop-control", "/dev/fuse", "/dev/net/tun"].map(Path::new) {
        if device.exists() {
            arguments.push(format!("--bind={}", device.display()));
        }
    }
    for shared in [fixture::workspace_dir(), fixture::target_dir()] {
        arguments.push(format!("--bind-ro={}", shared.display()));
    }
    arguments.push(bind("bind", scratch, SCRATCH));
    for (name, inner, mode) in STATE {
        arguments.push(bind("bind", &state_dir(scratch, name, mode), inner));
    }
    arguments
}

fn state_dir(scratch: &Path, name: &str, mode: u32) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = scratch.join(name);
    fs::create_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    fs::set_permissions(&dir, fs::Permissions::from_mode(mode)).expect("our own folder");
    dir
}
