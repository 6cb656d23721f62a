//! What the program prints about itself.

use std::os::unix::fs::PermissionsExt as _;

use nspawn_tests::cli::{Cli, Invocation, program};
use nspawn_tests::scratch;

const COMMANDS: [&str; 15] = [
    "unit",
    "list",
    "status",
    "logs",
    "exec",
    "shell",
    "stop",
    "kill",
    "wait",
    "remove",
    "prune",
    "image",
    "doctor",
    "explain",
    "completions",
];

fn run(arguments: &[&str]) -> nspawn_tests::cli::Finished {
    Invocation::new(program()).args(arguments).run()
}

#[test]
fn every_command_has_help() {
    let short = run(&["-h"]);
    short.expect_code(0);
    let help = run(&["--help"]);
    help.expect_code(0).expect_stdout("Exit status: 0 done");
    for command in COMMANDS {
        for text in [&short.stdout, &help.stdout] {
            assert!(
                text.contains(&format!("\n  {command} ")),
                "{command} in {text}"
            );
        }
        let own = run(&[command, "--help"]);
        own.expect_code(0)
            .expect_stdout("Usage: nspawn-run")
            .expect_stdout("--run-root");
        assert_eq!(own.stderr, "");
    }
    for (command, sub) in [
        ("image", "pull"),
        ("image", "list"),
        ("image", "remove"),
        ("explain", "unit"),
    ] {
        run(&[command, sub, "--help"])
            .expect_code(0)
            .expect_stdout("Usage: nspawn-run");
    }
    // what only the program itself calls is not offered
    assert!(!help.stdout.contains("monitor"), "{}", help.stdout);
    run(&["--version"])
        .expect_code(0)
        .expect_stdout(env!("CARGO_PKG_VERSION"));
    let nothing = run(&[]);
    nothing.expect_code(2).expect_stderr("Usage: nspawn-run");
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let finished = run(&["completions", shell]);
        finished.expect_code(0);
        assert_eq!(finished.stderr, "");
        for word in ["nspawn-run", "unit", "--image", "explain"] {
            let word = word
                .strip_prefix("--")
                .filter(|_| shell == "fish")
                .unwrap_or(word);
            finished.expect_stdout(word);
        }
    }
    let script = run(&["completions", "bash"]).stdout;
    Invocation::new("bash")
        .args(["-n", "/dev/stdin"])
        .stdin(script)
        .run()
        .expect_code(0);
}

#[test]
fn every_command_has_a_man_page() {
    let dir = scratch::on_disk();
    run(&["manual", dir.path().to_str().unwrap()]).expect_code(0);
    let page = |name: &str| {
        let path = dir.path().join(format!("{name}.1"));
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    assert!(page("nspawn-run").contains("systemd unit"));
    for command in COMMANDS {
        let text = page(&format!("nspawn-run-{command}"));
        assert!(text.contains(".SH") && text.contains(command), "{text}");
    }
    page("nspawn-run-image-pull");
    run(&["manual", "/does/not/exist"])
        .expect_code(1)
        .expect_stderr("cannot write man pages to /does/not/exist");
}

#[test]
fn explain_shows_the_command_and_the_unit_path() {
    let dir = scratch::on_disk();
    let write = |path: &str, text: &str| {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    };
    let unit = write("web.service", "[Service]\nExecStart=/bin/true\n");
    write("web.service.d/10-nice.conf", "[Service]\nNice=5\n");
    let cli = Cli::new();
    let finished = cli
        .command(["explain", "unit"])
        .arg(&unit)
        .args([
            "--env",
            "A=100% \"x\"",
            "--bind-ro",
            "/tmp:/data",
            "--mask",
            "cron.service",
        ])
        .args(["--image", "https://example.org/disk.qcow2"])
        .run();
    finished.expect_code(0);
    assert_eq!(finished.stderr, "");
    for text in [
        "# image https://example.org/disk.qcow2:",
        "\nsystemd-nspawn --quiet --boot ",
        " --machine=web ",
        " --network-veth-extra=nr-web:host0 ",
        "/tmp:/data",
        " --setenv=SYSTEMD_UNIT_PATH=/local/systemd: ",
        "\nweb.service\n    [Service]\n    ExecStart=/bin/true\n",
        "\nweb.service.d/10-nice.conf\n    [Service]\n    Nice=5\n",
        "\nweb.service.d/50-environment.conf\n    [Service]\n    Environment=\"A=100%% \\\"x\\\"\"\n",
        "\nmulti-user.target.d/wants.conf\n    [Unit]\n    Wants=web.service\n",
        "\ncron.service -> /dev/null\n",
        "\nsystemd-firstboot.service -> /dev/null\n",
    ] {
        finished.expect_stdout(text);
    }
    // no value of the environment is on the command line
    let command = finished
        .stdout
        .lines()
        .find(|line| line.starts_with("systemd-nspawn"))
        .unwrap();
    assert!(!command.contains("100"), "{command}");
    // it did nothing
    assert_eq!(std::fs::read_dir(cli.root()).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(cli.run_root()).unwrap().count(), 0);
    // and needs no image, no root and no systemd-nspawn
    cli.command(["explain", "unit"])
        .arg(&unit)
        .env("PATH", "/does/not/exist")
        .run()
        .expect_code(0);
    let default = cli
        .command(["explain", "unit"])
        .arg(&unit)
        .args(["--network", "none"])
        .run();
    default
        .expect_code(0)
        .expect_stdout("# image host:")
        .expect_stdout(" --private-network ");
}

#[test]
fn a_closed_standard_output_is_no_panic() {
    let line = format!(
        "set -o pipefail; {} completions bash | head -c 1 >/dev/null",
        program().display()
    );
    let finished = Invocation::new("bash").args(["-c", &line]).run();
    assert!(
        [0, 141].contains(&finished.code()),
        "{}",
        finished.transcript()
    );
    let full = format!("{} completions bash > /dev/full", program().display());
    if std::fs::metadata("/dev/full").is_ok_and(|meta| meta.permissions().mode() & 0o222 != 0) {
        let finished = Invocation::new("bash").args(["-c", &full]).run();
        finished
            .expect_code(1)
            .expect_stderr("cannot write to standard output");
    }
}
