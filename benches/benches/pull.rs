//! What `nspawn-run image` does with a whole image, as whole processes beside what else could do it.
//!
//! * `stream`: a compressed image from a URL to the verified raw base, with an empty store, against the longer one of
//!   downloading it alone and converting it alone (goal: at most 1.10), and against `systemd-pull`, which verifies
//!   nothing. The download alone is a bare socket copied to a file by the kernel; the conversion alone is
//!   `nspawn-run image convert`. Once as fast as loopback carries it and once behind a server that sends 50 MB/s.
//! * `hit`: an image that is in the store already, for which the server is asked whether it has another one, against
//!   `systemd-pull` with a filled cache.
//! * `verify`: `image verify` of a base, against `sha256sum` of it.
//! * `unpack`: an archived tree into an empty store, against `tar` into an empty folder and `systemd-import`.
//!
//! The page cache holds the input, and has nothing to write back when a clock starts.
#![allow(missing_docs)]

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use nspawn_benches::inputs::{self, MIB, Size};
use nspawn_benches::process::{self, Contestant, Cost};
use nspawn_benches::program::{importd, nspawn_run};
use nspawn_benches::table::{Goal, Row};
use nspawn_benches::{data_dir, quick, rounds, slow_rounds, wanted};
use nspawn_tests::fixture::Debian;
use nspawn_tests::http::{HttpServer, Resource};
use tempfile::TempDir;

/// The argument for one download and nothing else.
const DOWNLOAD: &str = "--download-alone";
/// What the slow server sends, in bytes per second.
const SLOW: u64 = 50_000_000;
/// Files in the tree of small ones.
const FILES: usize = 20_000;
const QUICK_FILES: usize = 500;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [first, address, path, output] = &args[..]
        && first == DOWNLOAD
    {
        download(address, path, output).expect("the download works");
        return;
    }
    let stage = Stage::new();
    for (index, size) in Size::both().into_iter().enumerate() {
        if wanted("pull/stream") {
            stream(&stage, "stream/loopback", size, None);
            // The larger one would only take longer.
            if index == 1 {
                stream(&stage, "stream/50 MB/s", size, Some(SLOW));
            }
        }
        if wanted("pull/hit") {
            hit(&stage, size);
        }
        if wanted("pull/verify") {
            verify(&stage, size);
        }
    }
    if wanted("pull/unpack") {
        unpack(&stage);
    }
}

/// Where everything is written: one folder on the disk of the inputs.
struct Stage(TempDir);

impl Stage {
    fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("pull-")
            .tempdir_in(data_dir());
        Self(dir.expect("a folder for the outputs"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// An empty folder, what was there before put out of the way. It is not removed before all was measured: ext4 looks
    /// for an inode for long where many were freed within the last minute.
    fn fresh(&self, name: &str) -> PathBuf {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = self.path(name);
        if path.exists() {
            fs::rename(&path, self.path(&format!("old-{number}"))).expect("what is ours moves");
        }
        self.empty(name)
    }

    /// An empty folder.
    fn empty(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        if path.exists() {
            fs::remove_dir_all(&path).expect("what is ours can be removed");
        }
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .expect("a folder can be made");
        path
    }

    fn nspawn_run(&self, args: &[&str]) -> Command {
        let mut command = Command::new(nspawn_run());
        command.arg("--root").arg(self.path("store"));
        command.arg("--run-root").arg(self.path("run"));
        command.arg("image").args(args);
        command
    }

    fn systemd(&self, worker: &str, args: &[&str]) -> Command {
        let mut command = Command::new(importd(worker));
        command.arg(format!("--image-root={}", self.path("machines").display()));
        command.args(args);
        command
    }

    /// The image alone: asking for files beside it, which are not there, would only hold it up, and makes systemd 252
    /// wait for ever at times.
    fn systemd_pull(&self, url: &str, more: &[&str]) -> Command {
        let beside = ["settings", "roothash", "roothash-signature", "verity"];
        let mut command = self.systemd("systemd-pull", &["--verify=no"]);
        command.args(beside.map(|file| format!("--{file}=no")));
        command.args(more).args(["raw", url, "image"]);
        command
    }

    fn contestant<'a>(
        &'a self,
        name: &'static str,
        rounds: usize,
        output: &'static str,
        command: impl Fn() -> Command + 'a,
    ) -> Contestant<'a> {
        Contestant {
            name,
            rounds,
            output: self.path(output),
            command: Box::new(command),
        }
    }
}

/// Runs a command that is not measured.
fn succeed(mut command: Command) -> String {
    let output = command.output().expect("the program runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {stderr}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn sha256(path: &Path) -> String {
    let mut command = Command::new("sha256sum");
    command.arg(path);
    let line = succeed(command);
    line.split_whitespace().next().expect("a digest").to_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// One request over a bare socket, its body copied to a file by the kernel.
fn download(address: &str, path: &str, output: &str) -> io::Result<()> {
    let mut socket = TcpStream::connect(address)?;
    write!(
        socket,
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    )?;
    let mut head = BufReader::with_capacity(1, &socket);
    let mut line = String::new();
    while head.read_line(&mut line)? > 2 {
        line.clear();
    }
    io::copy(&mut &socket, &mut File::create(output)?)?;
    Ok(())
}

/// Runs each of them once, none of which may fail.
fn warm_up(contestants: &[Contestant<'_>]) {
    for contestant in contestants {
        process::run(contestant).unwrap_or_else(|error| panic!("{}: {error}", contestant.name));
    }
}

fn same(one: &Path, other: &Path) {
    let mut command = Command::new("cmp");
    command.args([one, other]);
    succeed(command);
}

/// Serves a compressed image; answers it with its URL.
fn serve(server: &HttpServer, size: Size, limit: Option<u64>) -> (inputs::Input, String) {
    let input = inputs::dense("zlib", size.dense, &["-c"]);
    let mut resource = Resource::file(&input.path).etag("\"1\"");
    if let Some(limit) = limit {
        resource = resource.bytes_per_second_in_all(limit);
    }
    server.put("/image.qcow2", resource);
    let url = server.url("/image.qcow2");
    (input, url)
}

fn stream(stage: &Stage, name: &str, size: Size, limit: Option<u64>) {
    let server = HttpServer::new();
    let (input, url) = serve(&server, size, limit);
    let checksum = format!("sha256:{}", sha256(&input.path));
    let (output, copy) = (stage.path("output.raw"), stage.path("copy"));
    let address = server.address().to_string();
    let pull = ["pull", "--quiet", "--checksum", &checksum, &url];
    let contestants = [
        stage.contestant("ours", rounds(), "store", || {
            stage.empty("store");
            stage.nspawn_run(&pull)
        }),
        stage.contestant("download alone", rounds(), "copy", || {
            let _ = fs::remove_file(&copy); // of the run before
            let mut command = Command::new(std::env::current_exe().expect("this program"));
            command.args([DOWNLOAD, &address, "/image.qcow2", text(&copy)]);
            command
        }),
        stage.contestant("convert alone", rounds(), "output.raw", || {
            let _ = fs::remove_file(&output); // of the run before
            stage.nspawn_run(&["convert", "--quiet", text(&input.path), text(&output)])
        }),
        stage.contestant("systemd-pull", slow_rounds(), "machines", || {
            stage.empty("machines");
            stage.systemd_pull(&url, &[])
        }),
    ];
    // All of them are right, before any is measured.
    let raw = inputs::raw(size.dense);
    warm_up(&contestants[..3]);
    let base = succeed(stage.nspawn_run(&pull));
    same(Path::new(base.trim_end()), &raw);
    same(&copy, &input.path);
    same(&output, &raw);
    if process::run(&contestants[3]).is_ok() {
        same(&stage.path("machines/image.raw"), &raw);
    }

    let costs = process::compare(&contestants);
    let [ours, download, convert, systemd] = costs[..] else {
        unreachable!("four were run")
    };
    let ours = ours.unwrap_or_default();
    let longer = download.zip(convert).map(|(download, convert)| Cost {
        ended: download.ended.max(convert.ended),
        on_disk: download.on_disk.max(convert.on_disk),
        cpu: download.cpu + convert.cpu,
        memory: download.memory.max(convert.memory),
    });
    for (peer, theirs, goals) in [
        ("download or convert", longer, &[Goal::Ended(1.10)][..]),
        ("download alone", download, &[]),
        ("convert alone", convert, &[]),
        ("systemd-pull", systemd, &[Goal::Ended(1.0)]),
    ] {
        tell(name, &input.size, peer, ours, theirs, goals);
    }
}

fn tell(name: &str, size: &str, peer: &str, ours: Cost, theirs: Option<Cost>, goals: &[Goal]) {
    let row = Row {
        name,
        size,
        peer,
        ours,
        theirs,
        goals,
    };
    row.tell();
}

fn hit(stage: &Stage, size: Size) {
    let server = HttpServer::new();
    let (input, url) = serve(&server, size, None);
    stage.empty("store");
    stage.empty("machines");
    let pull = ["pull", "--quiet", "--verify=no", "--refresh", &url];
    let contestants = [
        stage.contestant("ours", rounds(), "store", || stage.nspawn_run(&pull)),
        stage.contestant("systemd-pull", slow_rounds(), "machines", || {
            stage.systemd_pull(&url, &["--force"])
        }),
    ];
    warm_up(&contestants[..1]);
    let _ = process::run(&contestants[1]); // one that fails is told below
    let costs = process::compare(&contestants);
    let ours = costs[0].unwrap_or_default();
    let goals = [Goal::Ended(1.0)];
    tell("hit", &input.size, "systemd-pull", ours, costs[1], &goals);
}

fn verify(stage: &Stage, size: Size) {
    let input = inputs::dense("zlib", size.dense, &["-c"]);
    stage.empty("store");
    let pull = ["pull", "--quiet", "--name=image", text(&input.path)];
    let base = succeed(stage.nspawn_run(&pull));
    // Digests are kept from the first time on.
    succeed(stage.nspawn_run(&["verify", "--quiet", "image"]));
    let contestants = [
        stage.contestant("ours", rounds(), "store", || {
            stage.nspawn_run(&["verify", "--quiet", "image"])
        }),
        stage.contestant("sha256sum", rounds(), "store", || {
            let mut command = Command::new("sha256sum");
            command.arg(base.trim_end());
            command
        }),
    ];
    let costs = process::compare(&contestants);
    let ours = costs[0].unwrap_or_default();
    let goals = [Goal::Ended(1.0)];
    tell("verify", &input.size, "sha256sum", ours, costs[1], &goals);
}

/// The tree of the Debian fixture, and one of small files; both as a plain tar.
fn trees() -> [(String, PathBuf); 2] {
    let debian = Debian::Tar.path();
    let bytes = debian.metadata().expect("the fixture is there").len();
    let files = if quick() { QUICK_FILES } else { FILES };
    let small = inputs::make(&format!("small-{files}.tar"), |path| {
        let dir = tempfile::tempdir_in(data_dir()).expect("a folder for the files");
        // What makes a folder an OS tree.
        let usr = dir.path().join("usr/lib");
        fs::create_dir_all(&usr).expect("a folder can be made");
        fs::write(usr.join("os-release"), "ID=small\n").expect("a small file");
        for file in 0..files {
            let folder = dir.path().join((file / 100).to_string());
            fs::create_dir_all(&folder).expect("a folder can be made");
            let length = 500 + file * 7919 % 7000;
            let byte = b'a' + u8::try_from(file % 26).unwrap_or_default();
            fs::write(folder.join(file.to_string()), vec![byte; length]).expect("a small file");
        }
        let mut command = Command::new("tar");
        command.arg("--create").arg(format!("--file={path}"));
        command.arg("--directory").arg(dir.path()).arg(".");
        succeed(command);
    });
    let mib = bytes / MIB;
    [
        (format!("{mib} MiB"), debian),
        (format!("{files} files"), small),
    ]
}

/// The tar inside a compression, made by that compression's own program.
fn packed(tar: &Path, program: &str, extension: &str) -> PathBuf {
    let name = tar.file_stem().and_then(|name| name.to_str());
    let bytes = tar.metadata().expect("the tar is there").len();
    let name = format!("{}-{bytes}.tar.{extension}", name.expect("a name"));
    inputs::make(&name, |path| {
        let mut command = Command::new(program);
        command.arg("--stdout").arg(tar);
        let output = File::create(path).expect("the input can be made");
        let status = command.stdout(output).status().expect("the program runs");
        assert!(status.success(), "{program}: {status}");
    })
}

fn unpack(stage: &Stage) {
    for (size, tar) in trees() {
        for (name, program) in [
            ("unpack/tar", None),
            ("unpack/tar.gz", Some(("gzip", "gz"))),
            ("unpack/tar.xz", Some(("xz", "xz"))),
            ("unpack/tar.zst", Some(("zstd", "zst"))),
        ] {
            let archive = match program {
                None => tar.clone(),
                Some((program, extension)) => packed(&tar, program, extension),
            };
            unpack_one(stage, name, &size, &archive);
        }
    }
}

fn unpack_one(stage: &Stage, name: &str, size: &str, archive: &Path) {
    let pull = ["pull", "--quiet", "--verify=no", text(archive)];
    let contestants = [
        stage.contestant("ours", rounds(), "store", || {
            stage.fresh("store");
            stage.nspawn_run(&pull)
        }),
        stage.contestant("tar -xf", rounds(), "tree", || {
            let tree = stage.fresh("tree");
            let mut command = Command::new("tar");
            command.args(["--extract", "--numeric-owner", "--xattrs", "--file"]);
            command.arg(archive).arg("--directory").arg(tree);
            command
        }),
        stage.contestant("systemd-import", slow_rounds(), "machines", || {
            stage.fresh("machines");
            stage.systemd("systemd-import", &["tar", text(archive), "tree"])
        }),
    ];
    warm_up(&contestants[..2]);
    let tree = succeed(stage.nspawn_run(&pull));
    // What was unpacked is what is in the archive.
    let mut command = Command::new("tar");
    command.args(["--compare", "--numeric-owner", "--file"]);
    command.arg(archive).arg("--directory").arg(tree.trim_end());
    succeed(command);

    let costs = process::compare(&contestants);
    let ours = costs[0].unwrap_or_default();
    let goals = [Goal::OnDisk(1.0)];
    tell(name, size, "tar -xf", ours, costs[1], &goals);
    let goals = [Goal::Ended(1.0)];
    tell(name, size, "systemd-import", ours, costs[2], &goals);
}
