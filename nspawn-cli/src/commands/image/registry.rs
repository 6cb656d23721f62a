//! What the command line and the environment say of registries.

use std::path::PathBuf;

use clap::Args;
use nspawn_image::{ImageRef, PullOptions};

/// Options of whatever pulls container images.
#[derive(Args, Clone, Debug)]
pub(crate) struct RegistryOptions {
    /// A registry that is asked over http without encryption, as HOST or HOST:PORT; those on this host always are
    #[arg(long, value_name = "HOST")]
    insecure_registry: Vec<String>,
}

impl RegistryOptions {
    /// Tells the library.
    pub(crate) fn apply(&self, reference: &ImageRef, options: &mut PullOptions) {
        if matches!(reference, ImageRef::Oci(_)) {
            options
                .insecure_registries
                .clone_from(&self.insecure_registry);
            options.registry_auth = auth_files(|name| std::env::var_os(name));
        }
    }
}

/// Where docker and podman keep credentials, what the environment names first.
fn auth_files(env: impl Fn(&str) -> Option<std::ffi::OsString>) -> Vec<PathBuf> {
    let get = |name: &str| {
        env(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let below = |name: &str, file: &str| get(name).map(|folder| folder.join(file));
    let named = [
        get("REGISTRY_AUTH_FILE"),
        below("DOCKER_CONFIG", "config.json"),
    ];
    let usual = [
        below("XDG_RUNTIME_DIR", "containers/auth.json"),
        below("HOME", ".config/containers/auth.json"),
        below("HOME", ".docker/config.json"),
    ];
    named.into_iter().chain(usual).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_the_environment_names_come_first() {
        let files = |set: &[(&str, &str)]| {
            let found = auth_files(|name| {
                let value = set.iter().find(|(key, _)| *key == name)?.1;
                Some(value.into())
            });
            let text = found.iter().map(|path| path.display().to_string());
            text.collect::<Vec<_>>().join(" ")
        };
        let home = "/h/.config/containers/auth.json /h/.docker/config.json";
        assert_eq!(files(&[("HOME", "/h")]), home);
        assert_eq!(
            files(&[
                ("HOME", "/h"),
                ("DOCKER_CONFIG", "/d"),
                ("REGISTRY_AUTH_FILE", "/r.json"),
                ("XDG_RUNTIME_DIR", "/run"),
            ]),
            format!("/r.json /d/config.json /run/containers/auth.json {home}")
        );
        assert_eq!(files(&[("HOME", "")]), "");
    }
}
