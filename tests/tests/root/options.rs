//! What the options of `unit` do inside the machine.

use nspawn_tests::fixture::Debian;
use nspawn_tests::scene::Scene;

const QUICK: [&str; 2] = ["--network", "none"];

#[test]
#[ignore = "needs root"]
fn root_environment_reaches_the_unit_as_it_is() {
    let scene = Scene::new();
    let values = [
        ("PLAIN", "value"),
        ("EMPTY", ""),
        ("SPACES", "  a  b "),
        ("QUOTES", "it's \"so\" `here`"),
        ("DOLLAR", "$HOME ${HOME} $$"),
        ("PERCENT", "100% %n %%"),
        ("BACKSLASH", "a\\b\\n\\\\"),
        ("LINES", "one\ntwo\n"),
        ("UNICODE", "żółw 🐢"),
        ("EQUALS", "a=b=c"),
    ];
    let names: Vec<&str> = values.iter().map(|(name, _)| *name).collect();
    let unit = scene.script(
        "env.service",
        &format!(
            "for n in {}; do printenv $n | base64 -w0; echo; done",
            names.join(" ")
        ),
    );
    let mut invocation = scene.unit(&unit, &QUICK);
    for (name, value) in values {
        // the last one comes from the command's own environment
        invocation = if name == "EQUALS" {
            invocation.env(name, value).args(["--env", name])
        } else {
            invocation.arg("--env").arg(format!("{name}={value}"))
        };
    }
    let finished = invocation.run();
    finished.expect_code(0);
    let decoded: Vec<String> = finished
        .stdout
        .lines()
        .map(|line| {
            let text = nspawn_tests::cli::Invocation::new("base64")
                .arg("-d")
                .stdin(line)
                .run()
                .stdout;
            text.strip_suffix('\n').unwrap_or(&text).to_owned()
        })
        .collect();
    let expected: Vec<&str> = values.iter().map(|(_, value)| *value).collect();
    assert_eq!(decoded, expected, "{}", finished.transcript());
    scene.end();
}

#[test]
#[ignore = "needs root"]
fn root_the_environment_is_in_no_command_line() {
    let scene = Scene::new();
    let secret = "s3cret-value-of-this-test";
    let unit = scene.script("hides.service", "exec sleep 600");
    let name = scene.name("hides");
    let variable = format!("TOKEN={secret}");
    scene
        .unit(
            &unit,
            &["--network", "none", "--detach", "--env", &variable],
        )
        .run()
        .expect_code(0);
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        assert!(!line.contains(secret), "{line}");
    }
    scene.run(["kill", &name]).expect_code(0);
    scene.run(["remove", &name]).expect_code(0);
    scene.end();
}

#[test]
#[ignore = "needs root"]
fn root_binds_show_files_with_their_owners() {
    let scene = Scene::new();
    scene.write("data/in.txt", "from the host\n");
    scene.write("odd na,me/in.txt", "odd\n");
    scene.write("single.txt", "a file\n");
    let data = scene.dir().join("data");
    let raw = Debian::Raw.path();
    let script = "cat /data/in.txt /ro/in.txt /single /odd/in.txt; echo out > /data/out.txt; \
                  echo no > /ro/x || echo read-only; stat -c '%u %U' /data/in.txt /data/out.txt; \
                  chown 1000:1000 /data/out.txt; stat -c %u /data/out.txt";
    let unit = scene.script("binds.service", script);
    for (image, users) in [
        ("host", "yes"),
        ("host", "no"),
        (raw.to_str().unwrap(), "yes"),
        (raw.to_str().unwrap(), "no"),
    ] {
        let finished = scene
            .unit(&unit, &["--image", image, "--private-users", users])
            .args(QUICK)
            .args([
                "--bind",
                "data:/data",
                "--bind-ro",
                "data:/ro",
                "--bind-ro",
                "single.txt:/single",
            ])
            .args(["--bind", "odd na,me:/odd"])
            .current_dir(scene.dir())
            .run();
        finished.expect_code(0);
        assert_eq!(
            finished.stdout.replace(
                "/bin/sh: 1: cannot create /ro/x: Read-only file system\n",
                ""
            ),
            "from the host\nfrom the host\na file\nodd\nread-only\n0 root\n0 root\n1000\n",
            "{image} {users}: {}",
            finished.transcript()
        );
        // and outside, the owners are the same: nothing of the machine's mapping sticks to the files
        use std::os::unix::fs::MetadataExt as _;
        assert_eq!(data.join("out.txt").metadata().unwrap().uid(), 1000);
        assert!(!data.join("x").exists());
        std::fs::remove_file(data.join("out.txt")).unwrap();
    }
    scene.end();
}

#[test]
#[ignore = "needs root"]
fn root_users_are_mapped_where_asked_and_possible() {
    use std::os::unix::fs::MetadataExt as _;
    let scene = Scene::new();
    let raw = Debian::Raw.path();
    let unit = scene.script(
        "users.service",
        "echo x > /etc/of-root; install -o daemon /dev/null /etc/of-daemon; exec sleep 600",
    );
    let name = scene.name("users");
    for (image, option, mapped) in [
        (raw.to_str().unwrap(), "yes", true),
        (raw.to_str().unwrap(), "auto", true),
        (raw.to_str().unwrap(), "no", false),
        ("host", "auto", true),
        ("host", "no", false),
    ] {
        scene
            .run_unit(
                &unit,
                &[
                    "--image",
                    image,
                    "--private-users",
                    option,
                    "--network",
                    "none",
                    "--detach",
                ],
            )
            .expect_code(0);
        let status = scene.status(&name);
        let leader = status["machine"]["leader"]["pid"].as_i64().unwrap();
        let map = std::fs::read_to_string(format!("/proc/{leader}/uid_map")).unwrap();
        let map: Vec<u64> = map
            .split_whitespace()
            .map(|word| word.parse().unwrap())
            .collect();
        let (base, length) = (map[1], map[2]);
        if mapped {
            assert!(
                base >= 65536 && length == 65536,
                "{image} {option}: {map:?}"
            );
            assert_eq!(
                status["machine"]["user_range"]["base"]
                    .as_u64()
                    .unwrap_or(base),
                base
            );
        } else {
            assert_eq!(base, 0, "{image} {option}: {map:?}");
        }
        // as the machine sees them, and as they are
        let seen = scene.run([
            "exec",
            &name,
            "--",
            "stat",
            "-c",
            "%u",
            "/etc/of-root",
            "/etc/of-daemon",
            "/usr/bin/env",
        ]);
        assert_eq!(seen.stdout, "0\n1\n0\n", "{}", seen.transcript());
        if image != "host" {
            let upper = scene
                .cli()
                .root()
                .join("machines")
                .join(&name)
                .join("upper");
            for (file, user) in [("etc/of-root", 0), ("etc/of-daemon", 1)] {
                let owner = u64::from(upper.join(file).metadata().unwrap().uid());
                assert_eq!(owner, base + user, "{image} {option}: {file}");
            }
        }
        scene.run(["kill", &name]).expect_code(0);
        scene.run(["remove", &name]).expect_code(0);
    }
    // kept changes keep their owners, whichever way the machine is started again
    let keeps = scene.script(
        "keeps.service",
        "test -e /etc/k && stat -c %u /etc/k; touch /etc/k",
    );
    for expected in ["", "0\n"] {
        let finished = scene.run_unit(
            &keeps,
            &[
                "--image",
                raw.to_str().unwrap(),
                "--persist",
                "--network",
                "none",
            ],
        );
        finished.expect_code(0);
        assert_eq!(finished.stdout, expected, "{}", finished.transcript());
    }
    scene.run(["remove", &scene.name("keeps")]).expect_code(0);
    scene.end();
}
