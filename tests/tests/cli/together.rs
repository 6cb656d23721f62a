//! Several processes that work on one store at once.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::Duration;

use nspawn_tests::cli::{Cli, Finished, Invocation, Running};
use nspawn_tests::http::{HttpServer, Resource};
use nspawn_tests::random::noise;
use nspawn_tests::wait;

const PATIENCE: Duration = Duration::from_secs(30);
/// Makes a download of one of the disks last about half a second.
const RATE: u64 = 6 << 20;

/// 3 MiB, a third of them a hole.
fn disk(seed: u64) -> Vec<u8> {
    let mut disk = noise(3 << 20, seed);
    disk[1 << 20..2 << 20].fill(0);
    disk
}

struct Scene {
    cli: Cli,
    server: HttpServer,
}

impl Scene {
    fn new() -> Self {
        Self {
            cli: Cli::new(),
            server: HttpServer::new(),
        }
    }

    /// Puts a disk on the server, which takes its time to send it.
    fn serve(&self, path: &str, seed: u64) -> String {
        let resource = Resource::bytes(disk(seed)).etag(format!("\"{seed}\""));
        self.server.put(path, resource.bytes_per_second(RATE));
        self.server.url(path)
    }

    fn pull(&self, url: &str, options: &[&str]) -> Invocation {
        let arguments = ["image", "pull", "--verify", "no"];
        self.cli.command(arguments).args(options).arg(url)
    }

    /// Files below the store, by the end of their names.
    fn files(&self, folder: &str, end: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.cli.root().join("images").join(folder));
        let paths = entries
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().path());
        let mut paths: Vec<PathBuf> = paths
            .filter(|path| path.to_str().unwrap().ends_with(end))
            .collect();
        paths.sort();
        paths
    }

    fn list(&self) -> Vec<serde_json::Value> {
        let list = self.cli.run(["image", "list", "--format", "json"]);
        list.expect_code(0);
        serde_json::from_str(&list.stdout).unwrap()
    }
}

fn finish_all(running: Vec<Running>) -> Vec<Finished> {
    let finished: Vec<Finished> = running.into_iter().map(Running::finish).collect();
    for one in &finished {
        one.expect_code(0);
    }
    finished
}

fn is_disk(path: &str, seed: u64) -> bool {
    fs::read(path.trim_end()).unwrap() == disk(seed)
}

#[test]
fn the_second_pull_of_a_url_waits_for_the_first() {
    let scene = Scene::new();
    let url = scene.serve("/disk.raw", 1);
    let first = scene.pull(&url, &[]).spawn();
    assert!(scene.server.wait_for_requests(1, PATIENCE));
    let second = scene.pull(&url, &[]).spawn();
    second.wait_for_stderr("another process works on this image: waiting for it");
    let [first, second] = [first.finish(), second.finish()];
    first.expect_code(0);
    second.expect_code(0);
    assert_eq!(first.stdout, second.stdout);
    assert!(
        !second.stderr.contains("downloading"),
        "{}",
        second.transcript()
    );
    assert!(is_disk(&first.stdout, 1));
    assert_eq!(scene.server.requests().len(), 1);
}

#[test]
fn ten_pulls_of_one_url_are_one_download() {
    let scene = Scene::new();
    let url = scene.serve("/disk.raw", 1);
    let pulls = (0..10).map(|_| scene.pull(&url, &["--name", "web"]).spawn());
    let finished = finish_all(pulls.collect());
    assert!(finished.iter().all(|one| one.stdout == finished[0].stdout));
    assert!(is_disk(&finished[0].stdout, 1));
    assert_eq!(scene.server.requests().len(), 1);
    assert_eq!(scene.list().len(), 1);
}

#[test]
fn ten_pulls_of_ten_images_do_not_disturb_each_other() {
    let scene = Scene::new();
    let urls: Vec<String> = (0..10)
        .map(|index| scene.serve(&format!("/disk-{index}.raw"), index))
        .collect();
    let finished = finish_all(
        urls.iter()
            .map(|url| scene.pull(url, &[]).spawn())
            .collect(),
    );
    for (seed, one) in (0..).zip(&finished) {
        assert!(is_disk(&one.stdout, seed), "{}", one.transcript());
    }
    assert_eq!(scene.list().len(), 10);
    // Ten images under one name: it is one of theirs in the end, and all of them are whole.
    let name = ["--name", "web"];
    let finished = finish_all(
        urls.iter()
            .map(|url| scene.pull(url, &name).spawn())
            .collect(),
    );
    let list = scene.list();
    assert_eq!(list.len(), 11);
    let web = list.iter().find(|image| image["name"] == "web").unwrap();
    let path = web["path"].as_str().unwrap();
    assert!(finished.iter().any(|one| one.stdout.trim_end() == path));
    assert_eq!(scene.server.requests().len(), 10);
    assert_eq!(scene.files("refs", ".new"), Vec::<PathBuf>::new());
}

#[test]
fn two_urls_of_the_same_bytes_are_one_image() {
    let scene = Scene::new();
    let urls = [scene.serve("/one.raw", 1), scene.serve("/two.raw", 1)];
    let pulls = urls.iter().map(|url| scene.pull(url, &[]).spawn());
    let finished = finish_all(pulls.collect());
    assert_eq!(finished[0].stdout, finished[1].stdout);
    assert_eq!(scene.files("blobs", ".raw").len(), 1);
    assert_eq!(scene.files("partial", ".data"), Vec::<PathBuf>::new());
    let list = scene.list();
    let names: Vec<&str> = list
        .iter()
        .filter_map(|image| image["name"].as_str())
        .collect();
    assert_eq!(names, ["one", "two"]);
    scene.cli.run(["image", "remove", "one"]).expect_code(0);
    assert!(is_disk(&finished[1].stdout, 1));
    scene.cli.run(["image", "remove", "two"]).expect_code(0);
    assert_eq!(scene.files("blobs", "").len(), 0);
}

#[test]
fn who_waits_for_a_killed_pull_goes_on_with_it() {
    let scene = Scene::new();
    let url = scene.serve("/disk.raw", 1);
    let first = scene.pull(&url, &[]).spawn();
    let half = wait::until(PATIENCE, || {
        let data = scene.files("partial", ".data").pop()?;
        (fs::metadata(data).ok()?.len() > 1 << 20).then_some(())
    });
    assert!(half.is_some());
    let second = scene.pull(&url, &[]).spawn();
    second.wait_for_stderr("waiting for it");
    first.signal(libc::SIGKILL);
    assert_eq!(first.finish().code(), 128 + libc::SIGKILL);
    let second = second.finish();
    second.expect_code(0);
    assert!(is_disk(&second.stdout, 1));
    let requests = scene.server.requests();
    assert_eq!(requests.len(), 2);
    let range = requests[1].header("range").unwrap();
    let from: u64 = range["bytes=".len()..range.len() - 1].parse().unwrap();
    assert!((1 << 20..3 << 20).contains(&from), "{range}");
}

#[test]
fn a_raw_disk_is_published_without_a_copy_and_with_its_holes() {
    let scene = Scene::new();
    let url = scene.serve("/disk.raw", 1);
    let pull = scene.pull(&url, &[]).spawn();
    let came = wait::until(PATIENCE, || {
        let data = scene.files("partial", ".data").pop()?;
        Some(fs::metadata(data).ok()?.ino())
    });
    let finished = pull.finish();
    finished.expect_code(0);
    let image = fs::metadata(finished.stdout.trim_end()).unwrap();
    assert_eq!(Some(image.ino()), came);
    assert_eq!(image.len(), 3 << 20);
    assert!(
        image.blocks() * 512 < (2 << 20) + (64 << 10),
        "{} blocks",
        image.blocks()
    );
}
