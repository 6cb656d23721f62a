//! What is wrong with a command line or a unit file is said before anything is done.

use std::path::{Path, PathBuf};

use nspawn_tests::cli::{Cli, Finished, Invocation, program};
use nspawn_tests::scratch;

fn run(arguments: &[&str]) -> Finished {
    Invocation::new(program()).args(arguments).run()
}

#[track_caller]
fn assert_refused(finished: &Finished, code: i32, texts: &[&str]) {
    finished.expect_code(code);
    assert_eq!(finished.stdout, "", "{}", finished.transcript());
    assert!(
        finished.stderr.starts_with("error: "),
        "{}",
        finished.transcript()
    );
    assert!(
        !finished.stderr.contains("panicked"),
        "{}",
        finished.transcript()
    );
    for text in texts {
        finished.expect_stderr(text);
    }
}

#[test]
fn usage_errors_are_told_with_status_2() {
    let long = "x".repeat(65);
    let table: Vec<(Vec<&str>, Vec<&str>)> = vec![
        (vec!["unit"], vec!["<FILE>"]),
        (vec!["no-such-command"], vec!["no-such-command"]),
        (
            vec!["unit", "a.service", "--no-such-option"],
            vec!["--no-such-option"],
        ),
        (
            vec!["unit", "a.service", "--name", "under_score"],
            vec!["'_'", "machine name"],
        ),
        (
            vec!["unit", "a.service", "--name", &long],
            vec!["1 to 64 characters", "65"],
        ),
        (vec!["unit", "a.service", "--name", ""], vec!["--name"]),
        (
            vec!["unit", "a.service", "--name=-a"],
            vec!["begin or end with"],
        ),
        (
            vec!["unit", "a.service", "--name", "a..b"],
            vec!["parts between dots"],
        ),
        (
            vec!["unit", "a.service", "--checksum", "abc"],
            vec!["--checksum"],
        ),
        (
            vec!["unit", "a.service", "--checksum", "md5:00"],
            vec!["--checksum", "md5"],
        ),
        (
            vec!["unit", "a.service", "--checksum", "sha256:12"],
            vec!["--checksum"],
        ),
        (
            vec!["unit", "a.service", "--checksum", "sha256:zz"],
            vec!["--checksum"],
        ),
        (
            vec!["unit", "a.service", "--verify", "perhaps"],
            vec!["--verify", "auto, checksum, signature, no"],
        ),
        (
            vec!["image", "pull", "x.raw", "--checksum-file", "ftp://h/x"],
            vec!["--checksum-file", "ftp"],
        ),
        (
            vec!["image", "pull", "x.raw", "--keyring"],
            vec!["--keyring", "<FILE>"],
        ),
        (
            vec!["unit", "a.service", "--image", "ftp://example.org/x.raw"],
            vec!["--image", "ftp"],
        ),
        (vec!["unit", "a.service", "--image", ""], vec!["--image"]),
        (
            vec!["unit", "a.service", "--image", "https://"],
            vec!["--image"],
        ),
        (
            vec!["unit", "a.service", "--network", "bridge"],
            vec!["host, none, veth"],
        ),
        (
            vec!["unit", "a.service", "--private-users", "perhaps"],
            vec!["auto, yes, no"],
        ),
        (
            vec!["unit", "a.service", "--timeout", "soon"],
            vec!["--timeout"],
        ),
        (
            vec!["unit", "a.service", "--mask", "not a unit"],
            vec!["--mask"],
        ),
        (vec!["stop"], vec!["<NAME>"]),
        (vec!["exec", "web"], vec!["<COMMAND>"]),
        (vec!["wait", "under_score"], vec!["'_'"]),
        (vec!["list", "--format", "xml"], vec!["table, json"]),
        (vec!["image"], vec!["pull"]),
        (
            vec!["image", "pull", "x.raw", "--name", "a/b"],
            vec!["--name"],
        ),
        (vec!["completions", "tcsh"], vec!["bash"]),
    ];
    for (arguments, texts) in table {
        let finished = run(&arguments);
        finished.expect_code(2);
        assert_eq!(finished.stdout, "", "{}", finished.transcript());
        for text in texts {
            finished.expect_stderr(text);
        }
    }
}

fn file(dir: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, bytes).unwrap();
    path
}

/// `explain` and `unit` read unit files the same way; neither gets further with these.
#[test]
fn unit_files_that_are_none_are_told() {
    let dir = scratch::on_disk();
    let dir = dir.path();
    let good = b"[Service]\nExecStart=/bin/true\n";
    std::fs::create_dir(dir.join("folder.service")).unwrap();
    let file = |name: &str, bytes: &[u8]| file(dir, name, bytes);
    file("web@.service", good);
    let table: Vec<(Vec<PathBuf>, Vec<&str>)> = vec![
        (
            vec![dir.join("missing.service")],
            vec!["cannot read the unit file", "missing.service", "hint:"],
        ),
        (
            vec![file("empty.service", b"")],
            vec!["empty.service", "empty", "systemd.unit(5)"],
        ),
        (
            vec![file("letter.service", b"Dear all,\n")],
            vec!["is no unit file", "line 1", "Dear all"],
        ),
        (
            vec![file("binary.service", b"\x7fELF\x02\xff\xfe")],
            vec!["is no unit file", "not UTF-8"],
        ),
        (
            vec![file("comment.service", b"# nothing\n")],
            vec!["comments only"],
        ),
        (
            vec![file("broken.service", b"[Service]\nExecStart\n")],
            vec!["line 2", "NAME=VALUE"],
        ),
        (
            vec![dir.join("folder.service")],
            vec!["folder.service", "a folder"],
        ),
        (
            vec![file("web", good)],
            vec!["not named as a unit", "hint:", "web.service"],
        ),
        (
            vec![file("web.txt", good)],
            vec!["not named as a unit", "web.txt"],
        ),
        (
            vec![file("two words.service", good)],
            vec!["not named as a unit", "' '"],
        ),
        (
            vec![
                file("a/web.service", good),
                file("b/web.service", b"[Service]\nExecStart=/bin/false\n"),
            ],
            vec!["two unit files are named web.service"],
        ),
        (
            vec![file("a/web.service", good), dir.join("a/web.service")],
            vec!["two unit files are named web.service"],
        ),
        (
            vec![dir.join("web@.service")],
            vec!["is a template", "web@1.service"],
        ),
        (
            vec![file("huge.service", &vec![b'#'; 2 << 20])],
            vec!["huge.service", "bytes"],
        ),
        (
            vec!["/dev/null.service".into()],
            vec!["cannot read the unit file"],
        ),
    ];
    let cli = Cli::new();
    for (files, texts) in table {
        for (command, code) in [
            (["unit"].as_slice(), 125),
            (["explain", "unit"].as_slice(), 2),
        ] {
            let finished = cli.command(command).args(&files).run();
            assert_refused(&finished, code, &texts);
        }
    }
    // nothing was made on the way
    for dir in [cli.root(), cli.run_root()] {
        assert_eq!(
            std::fs::read_dir(dir).unwrap().count(),
            0,
            "{}",
            dir.display()
        );
    }
}

#[test]
fn options_that_contradict_are_told() {
    let dir = scratch::on_disk();
    let unit = file(
        dir.path(),
        "web.service",
        b"[Service]\nExecStart=/bin/true\n",
    );
    let unit = unit.to_str().unwrap();
    let table: Vec<(Vec<&str>, Vec<&str>)> = vec![
        (
            vec!["--env", "1A=x"],
            vec!["1A", "environment variable name"],
        ),
        (
            vec!["--env", "A B=x"],
            vec!["A B", "environment variable name"],
        ),
        (vec!["--env", "=x"], vec!["environment variable name"]),
        (
            vec!["--env", "NO_SUCH_VARIABLE_HERE"],
            vec!["has no value here", "hint:"],
        ),
        (
            vec!["--bind", "/does/not/exist"],
            vec!["cannot bind /does/not/exist"],
        ),
        (
            vec!["--bind", "/tmp:relative"],
            vec!["relative", "not an absolute path"],
        ),
        (vec!["--bind", "/tmp:/a/../b"], vec!["'..'"]),
        (
            vec!["--bind", "/tmp:/usr"],
            vec!["/usr", "the machine needs it"],
        ),
        (
            vec!["--bind", "/tmp:/x", "--bind-ro", "/var:/x"],
            vec!["two binds go to", "/x"],
        ),
        (
            vec!["--mask", "web.service"],
            vec!["web.service is to be started and masked"],
        ),
    ];
    for (options, texts) in table {
        for (command, code) in [
            (["unit"].as_slice(), 125),
            (["explain", "unit"].as_slice(), 2),
        ] {
            let finished = Cli::new().command(command).arg(unit).args(&options).run();
            assert_refused(&finished, code, &texts);
        }
    }
}
