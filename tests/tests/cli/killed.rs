//! SIGKILL at any moment: no list ever shows something half made, the next pull goes on, and nothing is left in the end.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nspawn_tests::cli::{Cli, Invocation};
use nspawn_tests::http::{HttpServer, Resource};
use nspawn_tests::random::{Random, noise};
use nspawn_tests::scratch::names;
use nspawn_tests::{args, scratch};

use crate::sha256;

/// Kills of each layout; together they are a hundred and more.
const KILLS: u32 = 26;
/// A pull that goes on with what is there already may be done before its moment comes.
const ATTEMPTS: u32 = 5 * KILLS;
/// Slow enough that the moments lie in the download as well as before and after it.
const RATE: u64 = 12 << 20;

/// When to kill what takes so long: one time in three near its end, where it publishes.
fn moment(whole: Duration, random: &mut Random) -> Duration {
    let share = random.fraction();
    whole.mul_f64(match random.number() % 3 {
        0 => 0.8 + 0.2 * share,
        _ => share,
    })
}

/// What an image becomes.
enum Made {
    Disk(Vec<u8>),
    /// The tree that the archive was made of.
    Tree(PathBuf),
}

impl Made {
    #[track_caller]
    fn assert_is(&self, path: &Path) {
        match self {
            Self::Disk(bytes) => assert!(fs::read(path).unwrap() == *bytes, "{}", path.display()),
            Self::Tree(tree) => {
                let diff = Invocation::new("diff").args(args!["-r", tree, path]);
                diff.run().expect_code(0);
            }
        }
    }
}

struct Pulls {
    cli: Cli,
    url: String,
    made: Made,
    /// The digest of what is downloaded: the name of the blob.
    digest: String,
    _server: HttpServer,
}

impl Pulls {
    fn new(file: &str, bytes: Vec<u8>, made: Made) -> Self {
        let server = HttpServer::new();
        let (path, digest) = (format!("/{file}"), sha256(&bytes));
        let resource = Resource::bytes(bytes).etag("\"v1\"");
        server.put(&path, resource.bytes_per_second(RATE));
        Self {
            cli: Cli::new(),
            url: server.url(&path),
            made,
            digest,
            _server: server,
        }
    }

    fn command(&self) -> Invocation {
        let arguments = ["image", "pull", "--verify", "no", "--name", "web"];
        self.cli.command(arguments).arg(&self.url)
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.cli.root().join("images").join(name)
    }

    /// Whatever stands in the store is whole.
    fn assert_whole(&self) {
        if !self.folder("refs").exists() {
            return;
        }
        let sums = format!("{}.sums", self.digest);
        let blobs = names(&self.folder("blobs"));
        for name in &blobs {
            if *name == sums || *name == format!(".{sums}.new") {
                continue;
            }
            let (stem, _) = name.split_once('.').unwrap_or((name, ""));
            assert_eq!(stem, self.digest);
            self.made.assert_is(&self.folder("blobs").join(name));
            assert!(blobs.contains(&sums), "{blobs:?}");
        }
        for name in names(&self.folder("refs")) {
            if name != ".web.new" {
                assert_eq!(name, "web.json");
                assert_eq!(blobs.len(), 2, "{blobs:?}");
            }
        }
        let list = self.cli.run(["image", "list", "--format", "json"]);
        list.expect_code(0);
        let list: serde_json::Value = serde_json::from_str(&list.stdout).unwrap();
        for image in list.as_array().unwrap() {
            assert_eq!(image["digest"], format!("sha256:{}", self.digest));
            assert!(
                Path::new(image["path"].as_str().unwrap()).exists(),
                "{image}"
            );
        }
    }

    /// Pulls without being disturbed, and removes everything; answers how long the pull took.
    fn complete(&self) -> Duration {
        let finished = self.command().run();
        finished.expect_code(0);
        let path = Path::new(finished.stdout.trim_end());
        self.made.assert_is(path);
        let is_readonly = fs::metadata(path).unwrap().permissions().readonly();
        assert!(is_readonly || path.is_dir());
        self.assert_whole();
        let verified = self.cli.run(["image", "verify", "web"]);
        verified.expect_code(0);
        assert_eq!(verified.stdout, "web: ok\n");
        self.cli.run(["image", "remove", "web"]).expect_code(0);
        self.cli
            .run(["image", "prune", "--partial", "--recent"])
            .expect_code(0);
        for (folder, left) in [
            ("blobs", &[][..]),
            ("refs", &[]),
            ("partial", &["refs.lock"]),
        ] {
            assert_eq!(names(&self.folder(folder)), left, "{folder}");
        }
        finished.elapsed
    }

    fn kill(&self) {
        let mut random = Random::new();
        let mut whole = self.complete();
        let mut killed = 0;
        for _ in 0..ATTEMPTS {
            if killed == KILLS {
                break;
            }
            let running = self.command().spawn();
            std::thread::sleep(moment(whole, &mut random));
            running.signal(libc::SIGKILL);
            let finished = running.finish();
            let was_killed = finished.code() == 128 + libc::SIGKILL;
            assert!(
                was_killed || finished.code() == 0,
                "{}",
                finished.transcript()
            );
            killed += u32::from(was_killed);
            self.assert_whole();
            // Several kills in a row have to be survived too.
            if !was_killed || random.fraction() < 0.3 {
                whole = self.complete();
            }
        }
        assert_eq!(killed, KILLS, "killed before their end, of {ATTEMPTS}");
        self.complete();
    }
}

/// Packs a folder or file by a shell script that writes to standard output.
fn packed(script: &str, path: &Path) -> Vec<u8> {
    let out = path.with_extension("packed");
    let shell = Invocation::new("sh").args(args!["-ec", script, "sh", path, &out]);
    shell.run().expect_code(0);
    fs::read(out).unwrap()
}

#[test]
fn pulls_of_a_disk_that_is_converted_while_it_comes() {
    let folder = scratch::on_disk();
    let (disk, raw) = (noise(4 << 20, 1), folder.path().join("disk.raw"));
    fs::write(&raw, &disk).unwrap();
    let image = packed("qemu-img convert -c -O qcow2 \"$1\" \"$2\"", &raw);
    Pulls::new("disk.qcow2", image, Made::Disk(disk)).kill();
}

#[test]
fn pulls_of_a_tree() {
    let folder = scratch::on_disk();
    let tree = folder.path().join("tree");
    fs::create_dir_all(tree.join("usr/lib")).unwrap();
    fs::write(tree.join("usr/lib/os-release"), "ID=test\n").unwrap();
    for index in 0..100 {
        let at = tree.join(format!("usr/{}", index % 7));
        fs::create_dir_all(&at).unwrap();
        fs::write(at.join(index.to_string()), noise(16 << 10, index)).unwrap();
    }
    let image = packed("tar -C \"$1\" -c . | xz -1 > \"$2\"", &tree);
    Pulls::new("os.tar.xz", image, Made::Tree(tree)).kill();
}

#[test]
fn pulls_of_a_disk_that_is_taken_as_it_comes() {
    let disk = noise(3 << 20, 1);
    Pulls::new("disk.raw", disk.clone(), Made::Disk(disk)).kill();
}

#[test]
fn conversions_of_a_file() {
    let folder = scratch::on_disk();
    let (disk, raw) = (noise(16 << 20, 1), folder.path().join("disk.raw"));
    fs::write(&raw, &disk).unwrap();
    let image = packed("qemu-img convert -c -O qcow2 \"$1\" \"$2\"", &raw);
    let work = folder.path().join("work");
    fs::create_dir(&work).unwrap();
    let (source, target) = (folder.path().join("disk.packed"), work.join("out.raw"));
    assert_eq!(fs::read(&source).unwrap(), image);
    let cli = Cli::new();
    let convert = || cli.command(args!["image", "convert", "--force", &source, &target]);
    let finished = convert().run();
    finished.expect_code(0);
    let mut whole = finished.elapsed;
    let mut random = Random::new();
    let mut killed = 0;
    for _ in 0..ATTEMPTS {
        if killed == KILLS {
            break;
        }
        let old = (random.fraction() < 0.5).then_some("old");
        match old {
            Some(text) => fs::write(&target, text).unwrap(),
            None => drop(fs::remove_file(&target)),
        }
        let running = convert().spawn();
        std::thread::sleep(moment(whole, &mut random));
        running.signal(libc::SIGKILL);
        let finished = running.finish();
        match finished.code() {
            0 => whole = finished.elapsed,
            code => {
                assert_eq!(code, 128 + libc::SIGKILL);
                killed += 1;
            }
        }
        // As it was, or the whole of the new one; the name between the two is there for a moment.
        let found = fs::read(&target).ok();
        let is_new = found.as_ref() == Some(&disk);
        assert!(is_new || found.as_deref() == old.map(str::as_bytes));
        let mut left = names(&work);
        left.retain(|name| name != "out.raw" && name != ".out.raw.nspawn-run.new");
        assert_eq!(left, Vec::<String>::new());
    }
    assert_eq!(killed, KILLS, "killed before their end, of {ATTEMPTS}");
    fs::write(&target, "old").unwrap();
    convert().run().expect_code(0);
    assert!(fs::read(&target).unwrap() == disk);
    assert_eq!(names(&work), ["out.raw"]);
}
