//! Container images from a real registry on the loopback, and from servers that do what no real one would.

#[path = "support/fixture.rs"]
mod fixture;
#[path = "support/front.rs"]
mod front;
#[path = "support/registry.rs"]
mod registry;

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use fixture::{Fixture, names};
use front::{Answer, Front};
use nspawn_image::oci::OciError;
use nspawn_image::{
    Digest, DownloadReason, ErrorKind, Image, ImageError, ImageKind, PullOptions, Reporter, Verify,
};
use registry::{Layer, PASSWORD, Registry, USER, image, native, sha256};
use serde_json::json;
use tar::{Builder, EntryType, Header};

const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

enum Part<'a> {
    Folder(&'a str, u32),
    File(&'a str, &'a [u8]),
    Symlink(&'a str, &'a str),
    Hard(&'a str, &'a str),
}
use Part::{File, Folder, Hard, Symlink};

fn archive(parts: &[Part<'_>]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for part in parts {
        let mut header = Header::new_ustar();
        header.set_mtime(1_000_000_000);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        match part {
            Folder(path, mode) => {
                header.set_entry_type(EntryType::Directory);
                header.set_mode(*mode);
                builder.append_data(&mut header, path, &b""[..]).unwrap();
            }
            File(path, bytes) => {
                header.set_size(bytes.len() as u64);
                builder.append_data(&mut header, path, *bytes).unwrap();
            }
            Symlink(path, target) => {
                header.set_entry_type(EntryType::Symlink);
                builder.append_link(&mut header, path, target).unwrap();
            }
            Hard(path, target) => {
                header.set_entry_type(EntryType::Link);
                builder.append_link(&mut header, path, target).unwrap();
            }
        }
    }
    builder.into_inner().unwrap()
}

fn layer(media_type: &'static str, parts: &[Part<'_>]) -> Layer {
    pack(media_type, &archive(parts))
}

fn pack(media_type: &'static str, archive: &[u8]) -> Layer {
    let packed = match media_type {
        GZIP => {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(archive).unwrap();
            gzip.finish().unwrap()
        }
        ZSTD => zstd::encode_all(archive, 3).unwrap(),
        _ => archive.to_vec(),
    };
    Layer {
        packed,
        media_type,
        diff_id: sha256(archive),
    }
}

/// The least that is an OS.
fn base() -> Layer {
    layer(
        GZIP,
        &[
            Folder("usr/", 0o755),
            File("usr/lib/os-release", b"ID=test\n"),
            Folder("usr/lib/systemd/", 0o755),
            File("usr/lib/systemd/systemd", b"#!"),
        ],
    )
}

#[derive(Default)]
struct Notices(Vec<String>);

impl Reporter for Notices {
    fn notice(&mut self, text: &str) {
        self.0.push(text.to_owned());
    }
}

/// A pull from a registry that answers, and may take its time.
fn options() -> PullOptions {
    let mut options = PullOptions::default();
    options.retries = 0;
    options.idle_timeout = Duration::from_secs(10);
    options
}

fn pull(fixture: &Fixture, reference: &str) -> Result<Image, ImageError> {
    fixture.pull_with(reference, &options())
}

fn oci_error(error: ImageError) -> OciError {
    assert!(
        error.to_string().starts_with("cannot pull oci:127.0.0.1:"),
        "{error}"
    );
    match error {
        ImageError::Oci { source, .. } => *source,
        other => panic!("not an error of a container image: {other}"),
    }
}

#[test]
fn layers_are_applied_one_over_the_other() {
    let registry = Registry::open();
    let layers = [
        base(),
        layer(
            ZSTD,
            &[
                Folder("etc/", 0o755),
                File("etc/kept", b"kept"),
                File("etc/gone", b"gone"),
                Folder("etc/emptied/", 0o700),
                File("etc/emptied/old", b"old"),
                Folder("etc/emptied/deep/", 0o755),
                File("etc/emptied/deep/old", b"old"),
                Folder("file-soon/", 0o755),
                File("file-soon/in", b"x"),
                File("folder-soon", b"x"),
                Folder("gone/", 0o755),
                File("gone/in", b"x"),
                Folder("again/", 0o700),
                File("again/old", b"x"),
                Folder("usr/sbin/", 0o755),
                Symlink("sbin", "usr/sbin"),
            ],
        ),
        layer(
            TAR,
            &[
                // A whiteout that stands after the new file hides the old one alone.
                File("etc/emptied/new", b"new"),
                File("etc/emptied/.wh..wh..opq", b""),
                File("etc/.wh.gone", b""),
                File(".wh.gone", b""),
                File("again/new", b"new"),
                File(".wh.again", b""),
                File("etc/.wh.not-there", b""),
                File("no/such/.wh.folder", b""),
                File("file-soon", b"a file"),
                Folder("folder-soon/", 0o755),
                File("folder-soon/in", b"a folder"),
                Hard("etc/hard", "etc/kept"),
                Hard("etc/of-file", "usr/lib/os-release"),
                File("sbin/tool", b"tool"),
                Folder("etc/", 0o711),
                File(".wh..wh.plnk", b""),
            ],
        ),
    ];
    let digest = registry.push("team/web", "v1", &layers);
    let fixture = Fixture::new();
    let reference = registry.reference("team/web:v1");
    let pulled = pull(&fixture, &reference).unwrap();
    assert_eq!(pulled.kind(), ImageKind::Tree);
    assert_eq!(pulled.digest(), Some(digest));
    assert_eq!(pulled.name().unwrap().as_str(), "web-v1");
    let tree = pulled.path();
    let read = |name: &str| fs::read_to_string(tree.join(name)).unwrap();
    assert_eq!(
        names(tree),
        ["again", "etc", "file-soon", "folder-soon", "sbin", "usr"]
    );
    assert_eq!(
        names(&tree.join("etc")),
        ["emptied", "hard", "kept", "of-file"]
    );
    assert_eq!(names(&tree.join("etc/emptied")), ["new"]);
    assert_eq!(names(&tree.join("again")), ["new"]);
    assert_eq!(
        (read("file-soon"), read("folder-soon/in")),
        ("a file".into(), "a folder".into())
    );
    assert_eq!(
        (read("etc/hard"), read("etc/of-file")),
        ("kept".into(), "ID=test\n".into())
    );
    assert_eq!(
        read("usr/sbin/tool"),
        "tool",
        "links of lower layers are followed"
    );
    let inode = |name: &str| fs::metadata(tree.join(name)).unwrap().ino();
    assert_eq!(inode("etc/hard"), inode("etc/kept"));
    assert_eq!(inode("etc/of-file"), inode("usr/lib/os-release"));
    let mode = |name: &str| fs::metadata(tree.join(name)).unwrap().mode() & 0o7777;
    assert_eq!(
        (mode("etc"), mode("etc/emptied")),
        (0o711, 0o700),
        "the last entry counts"
    );
    assert_eq!(mode("again"), 0o755, "what was removed leaves no mode");
    assert_eq!(
        fs::metadata(tree.join("etc")).unwrap().mtime(),
        1_000_000_000
    );
    let private = |name: &str| {
        fs::metadata(fixture.dir.path().join("store").join(name))
            .unwrap()
            .mode()
            & 0o077
    };
    assert_eq!((private("blobs"), private("partial")), (0, 0));
    assert_eq!(fixture.left("partial"), Vec::<String>::new());

    // An unchanged tag is not pulled again, and another image under it is.
    let mut refresh = options();
    refresh.refresh = true;
    assert_eq!(
        fixture.pull_with(&reference, &refresh).unwrap().path(),
        tree
    );
    let by_digest = pull(&fixture, &registry.reference(&format!("team/web@{digest}"))).unwrap();
    assert_eq!(by_digest.path(), tree);
    let newer = registry.push("team/web", "v1", &[base()]);
    assert_eq!(pull(&fixture, &reference).unwrap().digest(), Some(digest));
    assert_eq!(
        fixture.pull_with(&reference, &refresh).unwrap().digest(),
        Some(newer)
    );
    assert!(tree.exists(), "an image in use is never touched");
    drop(registry);
    assert_eq!(
        pull(&fixture, &reference).unwrap().digest(),
        Some(newer),
        "no network is needed"
    );
    let mut offline = options();
    offline.offline = true;
    let other = reference.replace(":v1", ":v2");
    let error = fixture.pull_with(&other, &offline).unwrap_err();
    assert!(
        matches!(&error, ImageError::Download(e) if matches!(e.reason, DownloadReason::Offline))
    );
    let list = fixture.store.list().unwrap();
    assert!(
        list.iter().any(|image| image.source == reference),
        "{list:?}"
    );
}

#[test]
fn a_password_is_sent_where_it_is_wanted() {
    let registry = Registry::closed();
    registry.push("n", "latest", &[base()]);
    let fixture = Fixture::new();
    let reference = registry.reference("n");
    let error = pull(&fixture, &reference).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Network);
    assert!(error.hint().unwrap().contains("podman login"));
    assert!(matches!(
        oci_error(error),
        OciError::Denied {
            known: false,
            helper: None,
            ..
        }
    ));

    let file = |name: &str, text: String| {
        let path = fixture.dir.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let auth = |password: &str| json!({"auths": {format!("127.0.0.1:{}", registry.port): {"username": USER, "password": password}}});
    let helper = file("helper.json", json!({"credsStore": "desktop"}).to_string());
    let mut options = options();
    options.registry_auth = vec![fixture.dir.path().join("none.json"), helper.clone()];
    let error = fixture.pull_with(&reference, &options).unwrap_err();
    assert!(
        error.hint().unwrap().contains("desktop"),
        "{:?}",
        error.hint()
    );

    options.registry_auth = vec![file("wrong.json", auth("wrong").to_string())];
    let error = fixture.pull_with(&reference, &options).unwrap_err();
    assert!(matches!(
        oci_error(error),
        OciError::Denied { known: true, .. }
    ));

    let damaged = file("damaged.json", "{".to_owned());
    options.registry_auth = vec![damaged.clone()];
    let error = fixture.pull_with(&reference, &options).unwrap_err();
    assert!(matches!(oci_error(error), OciError::AuthFile { path, .. } if path == damaged));

    options.registry_auth = vec![helper, file("right.json", auth(PASSWORD).to_string())];
    let pulled = fixture.pull_with(&reference, &options).unwrap();
    assert!(pulled.path().join("usr/lib/os-release").exists());
    let record = fs::read_to_string(fixture.dir.path().join("store/refs/n.json")).unwrap();
    assert!(!record.contains(PASSWORD), "{record}");
}

#[test]
fn the_image_for_this_machine_is_chosen() {
    let registry = Registry::open();
    let here = layer(GZIP, &[File("here", b"x")]);
    let there = layer(GZIP, &[File("there", b"x")]);
    let mut manifests = Vec::new();
    let mut describe = |architecture: &str, extra: Layer| {
        let manifest = registry.push_parts("n", architecture, &[base(), extra]);
        let bytes = manifest.to_string();
        let digest = registry.push_manifest("n", &sha256(bytes.as_bytes()).to_string(), &manifest);
        manifests.push(json!({
            "mediaType": manifest["mediaType"],
            "digest": digest.to_string(),
            "size": bytes.len(),
            "platform": {"os": "linux", "architecture": architecture},
        }));
        digest
    };
    describe("s390x", there);
    let wanted = describe(native(), here);
    let index = |manifests: &[serde_json::Value]| {
        json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.list.v2+json",
            "manifests": manifests,
        })
    };
    let both = registry.push_manifest("n", "both", &index(&manifests));
    registry.push_manifest("n", "other", &index(&manifests[..1]));
    let fixture = Fixture::new();
    let pulled = pull(&fixture, &registry.reference("n:both")).unwrap();
    assert_eq!(pulled.digest(), Some(wanted));
    assert!(pulled.path().join("here").exists());
    let pinned = pull(&fixture, &registry.reference(&format!("n@{both}"))).unwrap();
    assert_eq!(pinned.path(), pulled.path());

    let error = oci_error(pull(&fixture, &registry.reference("n:other")).unwrap_err());
    let text = error.to_string();
    assert!(
        text.contains("only for linux/s390x") && text.contains(native()),
        "{text}"
    );
    // A single image says so in its configuration.
    let single = registry.push_parts("n", "s390x", &[base()]);
    registry.push_manifest("n", "single", &single);
    let error = oci_error(pull(&fixture, &registry.reference("n:single")).unwrap_err());
    assert!(matches!(error, OciError::Platform { .. }), "{error}");

    let mut options = options();
    options.checksum = Some(wanted);
    fixture
        .pull_with(&registry.reference("n:both"), &options)
        .unwrap();
    options.checksum = Some(Digest::Sha256([7; 32]));
    let error = fixture
        .pull_with(&registry.reference("n:both"), &options)
        .unwrap_err();
    assert!(matches!(error, ImageError::Mismatch { .. }), "{error}");
    let missing = oci_error(pull(&fixture, &registry.reference("n:none")).unwrap_err());
    assert!(matches!(missing, OciError::NotFound { .. }), "{missing}");
    assert_eq!(fixture.left("partial"), Vec::<String>::new());
}

#[test]
fn no_bytes_but_those_named_are_unpacked() {
    let registry = Registry::open();
    let fixture = Fixture::new();
    let blobs = || names(&fixture.dir.path().join("store/blobs"));
    let extra = layer(GZIP, &[File("extra", b"x")]);
    let digest = sha256(&extra.packed);
    registry.push("n", "damaged", &[base(), extra]);
    let file = registry.blob_file(&digest);
    let mut bytes = fs::read(&file).unwrap();
    bytes[20] ^= 1;
    fs::write(&file, &bytes).unwrap();
    let error = oci_error(pull(&fixture, &registry.reference("n:damaged")).unwrap_err());
    assert!(
        matches!(&error, OciError::Digest { what, expected, .. } if what == "layer 2" && **expected == digest),
        "{error}"
    );
    bytes.push(0);
    fs::write(&file, &bytes).unwrap();
    let error = oci_error(pull(&fixture, &registry.reference("n:damaged")).unwrap_err());
    assert!(
        matches!(&error, OciError::Size { what, .. } if what == "layer 2"),
        "{error}"
    );

    let mut lying = layer(ZSTD, &[File("lying", b"x")]);
    lying.diff_id = sha256(b"something else");
    registry.push("n", "lying", &[base(), lying]);
    let error = oci_error(pull(&fixture, &registry.reference("n:lying")).unwrap_err());
    assert!(
        matches!(&error, OciError::Digest { what, .. } if what == "content of layer 2"),
        "{error}"
    );

    let evil = layer(GZIP, &[File("usr/.wh...", b"")]);
    registry.push("n", "evil", &[base(), evil]);
    let error = pull(&fixture, &registry.reference("n:evil")).unwrap_err();
    assert!(error.to_string().contains("layer 2 of 2"), "{error}");
    assert!(matches!(error, ImageError::Unpack { .. }), "{error}");

    registry.push("n", "no-os", &[layer(TAR, &[File("a", b"x")])]);
    let error = pull(&fixture, &registry.reference("n:no-os")).unwrap_err();
    assert!(
        matches!(error, ImageError::NoTree { missing: "usr", .. }),
        "{error}"
    );
    assert_eq!(blobs(), Vec::<String>::new());
    assert!(fixture.store.list().unwrap().is_empty());
}

#[test]
fn an_image_without_systemd_is_one_with_a_notice() {
    let registry = Registry::open();
    let bare = layer(
        GZIP,
        &[Folder("usr/", 0o755), File("etc/os-release", b"ID=bare\n")],
    );
    // Two blocks of zeros are an archive too.
    registry.push("n", "latest", &[bare, pack(TAR, &[0; 1024])]);
    let fixture = Fixture::new();
    let mut notices = Notices::default();
    let reference = registry.reference("n").parse().unwrap();
    fixture
        .store
        .pull(&reference, &options(), &mut notices)
        .unwrap();
    assert!(
        notices.0.iter().any(|text| text.contains("no systemd")),
        "{:?}",
        notices.0
    );
}

/// A registry of one image behind `guard`, whose blobs are at another server.
fn fake(front: &Front, blobs: &Front, layers: &[Layer], guard: Option<(String, String)>) -> Digest {
    let (config, manifest) = image(native(), layers);
    let manifest = manifest.to_string().into_bytes();
    let digest = sha256(&manifest);
    let guarded = |answer: Answer| Answer {
        guard: guard.clone(),
        ..answer
    };
    let content_type = (
        "content-type",
        "application/vnd.oci.image.manifest.v1+json".to_owned(),
    );
    let answer = Answer {
        headers: vec![content_type],
        ..Answer::ok(manifest)
    };
    front.set("/v2/n/manifests/latest", guarded(answer));
    front.set(
        &format!("/v2/n/blobs/{}", sha256(&config)),
        guarded(Answer::ok(config)),
    );
    for layer in layers {
        let digest = sha256(&layer.packed);
        let path = format!("/store/{digest}");
        let moved = Answer {
            status: 307,
            headers: vec![("location", blobs.url(&path))],
            ..Answer::default()
        };
        front.set(&format!("/v2/n/blobs/{digest}"), guarded(moved));
        let blob = Answer {
            headers: vec![("etag", format!("\"{digest}\""))],
            ..Answer::ok(layer.packed.clone())
        };
        blobs.set(&path, blob);
    }
    digest
}

#[test]
fn a_token_goes_to_the_registry_alone() {
    let (front, blobs, tokens) = (Front::start(), Front::start(), Front::start());
    let challenge = format!(
        "Bearer realm=\"{}\",service=\"tests\",scope=\"repository:n:pull\"",
        tokens.url("/token")
    );
    let guard = ("Bearer the-token".to_owned(), challenge);
    fake(&front, &blobs, &[base()], Some(guard));
    tokens.set(
        "/token",
        Answer::ok(r#"{"token": "the-token", "expires_in": 60}"#),
    );
    let reference = format!("oci:127.0.0.1:{}/n", front.port);
    let fixture = Fixture::new();
    pull(&fixture, &reference).unwrap();
    let asked = tokens.seen();
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert_eq!(
        asked[0].line,
        "GET /token?scope=repository%3An%3Apull&service=tests"
    );
    assert_eq!(asked[0].header("authorization"), None);
    let asked = blobs.seen();
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert_eq!(
        asked[0].header("authorization"),
        None,
        "a token left the registry"
    );
    let last = front.seen().pop().unwrap();
    assert_eq!(last.header("authorization"), Some("Bearer the-token"));

    // With a password it is asked for by name; an identity token is posted.
    for (entry, method) in [
        (json!({"auth": "bmluYTpzM2NyZXQ="}), "GET"),
        (json!({"identitytoken": "long-lived"}), "POST"),
    ] {
        let path = fixture.dir.path().join("auth.json");
        let file = json!({"auths": {format!("127.0.0.1:{}", front.port): entry}});
        fs::write(&path, file.to_string()).unwrap();
        let mut options = options();
        options.registry_auth = vec![path];
        options.refresh = true;
        fixture.pull_with(&reference, &options).unwrap();
        let asked = tokens.seen();
        assert!(asked[0].line.starts_with(method), "{asked:?}");
        if method == "GET" {
            assert_eq!(
                asked[0].header("authorization"),
                Some("Basic bmluYTpzM2NyZXQ=")
            );
        } else {
            assert!(
                asked[0].body.contains("refresh_token=long-lived"),
                "{asked:?}"
            );
            assert!(
                asked[0].body.contains("grant_type=refresh_token"),
                "{asked:?}"
            );
        }
    }
    // A realm elsewhere is not asked in the open, with or without a password.
    let guard = (
        "x".to_owned(),
        "Bearer realm=\"http://192.0.2.1/token\"".to_owned(),
    );
    fake(&front, &blobs, &[base()], Some(guard));
    let fresh = Fixture::new();
    let error = oci_error(fresh.pull(&reference).unwrap_err());
    assert!(error.to_string().contains("without encryption"), "{error}");
    let guard = ("x".to_owned(), "Negotiate".to_owned());
    fake(&front, &blobs, &[base()], Some(guard));
    let error = oci_error(fresh.pull(&reference).unwrap_err());
    assert!(matches!(error, OciError::Challenge { .. }), "{error}");
}

#[test]
fn a_broken_layer_goes_on_where_it_stopped() {
    let (front, blobs) = (Front::start(), Front::start());
    let noise: Vec<u8> = (0..400_000_u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    let big = layer(TAR, &[File("big", &noise)]);
    let path = format!("/store/{}", sha256(&big.packed));
    let layers = [base(), big];
    let digest = fake(&front, &blobs, &layers, None);
    let cut = Answer {
        headers: vec![("etag", "\"one\"".to_owned())],
        cut: Some(1_000_000),
        ..Answer::ok(layers[1].packed.clone())
    };
    blobs.set(&path, cut);
    let reference = format!("oci:127.0.0.1:{}/n", front.port);
    let fixture = Fixture::new();
    let error = pull(&fixture, &reference).unwrap_err();
    assert!(matches!(error, ImageError::Download(_)), "{error}");
    assert!(
        fixture
            .left("partial")
            .iter()
            .any(|name| name.ends_with("-1.data")),
        "{:?}",
        fixture.left("partial")
    );
    blobs.seen();
    let image = pull(&fixture, &reference).unwrap();
    assert_eq!(image.digest(), Some(digest));
    assert!(fs::read(image.path().join("big")).unwrap() == noise);
    let asked = blobs.seen();
    let range = asked
        .iter()
        .find(|asked| asked.line.contains(&path))
        .unwrap();
    let from = range.header("range").unwrap();
    assert!(from.starts_with("bytes=") && from != "bytes=0-", "{from}");
    assert_eq!(fixture.left("partial"), Vec::<String>::new());
}

#[test]
fn what_is_known_and_not_offered_is_named() {
    let (front, blobs) = (Front::start(), Front::start());
    let fixture = Fixture::new();
    let reference = format!("oci:127.0.0.1:{}/n", front.port);
    let (_, manifest) = image(native(), &[base()]);
    let with = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut changed = manifest.clone();
        change(&mut changed);
        changed
    };
    let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    let table = [
        (
            json!({"schemaVersion": 1, "fsLayers": []}),
            "docker schema 1",
        ),
        (
            with(&|m| m["layers"][0]["mediaType"] = json!(foreign)),
            foreign,
        ),
        (
            with(&|m| m["layers"][0]["mediaType"] = json!("application/x-helm")),
            "application/x-helm",
        ),
        (
            with(&|m| m["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json")),
            "helm.config",
        ),
        (with(&|m| m["manifests"] = json!([])), "at once"),
        (
            with(&|m| m["schemaVersion"] = json!(3)),
            "schema version is 3",
        ),
        (
            with(&|m| m["layers"][0]["size"] = json!(1_u64 << 50)),
            "layers have",
        ),
        (
            with(&|m| {
                let layer = m["layers"][0].clone();
                m["layers"] = json!(vec![layer; 501]);
            }),
            "more than 500 layers",
        ),
        (json!("text"), "makes no sense"),
    ];
    for (manifest, text) in table {
        fake(&front, &blobs, &[base()], None);
        front.set("/v2/n/manifests/latest", Answer::ok(manifest.to_string()));
        let error = oci_error(pull(&fixture, &reference).unwrap_err());
        assert!(error.to_string().contains(text), "{error}");
    }
    front.set(
        "/v2/n/manifests/latest",
        Answer {
            status: 429,
            ..Answer::default()
        },
    );
    let error = pull(&fixture, &reference).unwrap_err();
    assert!(error.hint().unwrap().contains("no more pulls"));
    front.set("/v2/n/manifests/latest", Answer::ok(vec![b' '; 5 << 20]));
    let error = pull(&fixture, &reference).unwrap_err();
    assert!(matches!(error, ImageError::Download(_)), "{error}");
}

#[test]
fn a_container_image_is_verified_by_its_digest_or_not_at_all() {
    let registry = Registry::open();
    let digest = registry.push("os", "1", &[base()]);
    let fixture = Fixture::new();
    let tag = registry.reference("os:1");
    let by_digest = registry.reference(&format!("os@{digest}"));
    let with = |change: fn(&mut PullOptions)| {
        let mut options = options();
        change(&mut options);
        options
    };
    let checksum = with(|options| options.verify = Verify::Checksum);
    let refused = [
        (
            &tag,
            with(|o| o.verify = Verify::Signature),
            "a signature of a container image",
        ),
        (
            &by_digest,
            with(|o| o.verify = Verify::Signature),
            "a signature of a container image",
        ),
        (
            &tag,
            with(|o| o.checksum_file = Some("/SHA256SUMS".parse().unwrap())),
            "a checksum file of a container image",
        ),
        (&tag, checksum.clone(), "its tag says nothing"),
    ];
    let refuse = |(reference, options, text): &(&String, PullOptions, &str)| {
        let error = fixture.pull_with(reference, options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Input);
        let hint = error.hint().unwrap();
        assert!(hint.contains("oci:NAME@sha256:HEX"), "{hint}");
        let ImageError::Verify { what, source } = error else {
            panic!("not an error of verification: {error:?}");
        };
        assert_eq!(what, **reference);
        assert!(source.to_string().contains(text), "{source}");
    };
    refused.iter().for_each(refuse);
    assert_eq!(fixture.left("refs"), Vec::<String>::new());
    // What is in the store already is not passed off as more than it is.
    drop(pull(&fixture, &tag).unwrap());
    refused.iter().for_each(refuse);
    assert_eq!(fixture.store.list().unwrap()[0].verified, "none");
    let mut given = checksum.clone();
    given.checksum = Some(digest);
    fixture.pull_with(&tag, &given).unwrap();
    let image = fixture.pull_with(&by_digest, &checksum).unwrap();
    let all = fixture.store.list().unwrap();
    let stored = all.iter().find(|it| Some(&it.name) == image.name());
    assert_eq!(stored.unwrap().verified, "checksum given");
}
