//! The relay as it is measured: its binary and its settings, and variants of them.

use std::env;
use std::path::PathBuf;
use std::process::Command;
use std::str::FromStr;

use anyhow::Result;
use anyhow::bail;
use clap::Args;
use clap::ValueEnum;
use tapster::transport::Address;

use crate::bench::peer::Peer;
use crate::bench::peer::RELAY;
use crate::bench::process::Class;

/// Which relay, and how it is set.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub(crate) struct RelayArgs {
    /// The relay's binary [default: tapster beside loadgen]
    #[arg(long = "relay", value_name = "PATH")]
    path: Option<PathBuf>,
    /// Worker threads of the relay
    #[arg(long, value_name = "N", default_value_t = 1)]
    workers: usize,
    /// Backend of the relay: auto, uring or epoll
    #[arg(long, value_name = "B", default_value = "auto")]
    backend: String,
    /// Configuration keys of the relay's outputs
    #[arg(long, value_name = "KEYS", default_value = "when_full=block&queue=64MiB")]
    relay_keys: String,
}

impl RelayArgs {
    /// The relay's binary: as told, or beside this one.
    pub(crate) fn path(&self) -> Result<PathBuf> {
        let path = match &self.path {
            Some(path) => path.clone(),
            None => env::current_exe()?.with_file_name("tapster"),
        };
        if !path.is_file() {
            bail!(
                "{} is not there: build it with `cargo build --release`, or name it with --relay PATH",
                path.display()
            );
        }
        Ok(path)
    }

    /// The command that relays from `input` to every one of `outputs`.
    pub(crate) fn command(&self, class: Class, input: &Address, outputs: &[Address]) -> Result<Command> {
        let mut command = class.command(self.path()?);
        command.args(["run", "--listen", &input.to_string()]);
        for output in outputs {
            command.args(["--to", &format!("{output}?{}", self.relay_keys)]);
        }
        command.args(["--workers", &self.workers.to_string(), "--backend", &self.backend]);
        Ok(command)
    }

    /// Puts a key of the outputs in the place of the same one, or behind the others; without a value it is left out.
    fn set_output_key(&mut self, key: &str, value: &str) {
        let others = self.relay_keys.split('&').filter(|pair| {
            let name = pair.split_once('=').map_or(*pair, |(name, _)| name);
            !pair.is_empty() && name != key
        });
        let pair = Some(format!("{key}={value}")).filter(|_| !value.is_empty());
        self.relay_keys = others.chain(pair.as_deref()).collect::<Vec<_>>().join("&");
    }
}

/// The relay once more, with some settings of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Variant {
    pub(crate) name: String,
    settings: Vec<(String, String)>,
}

impl Variant {
    /// The settings of `relay`, and in their place those of the variant.
    pub(crate) fn of(&self, relay: &RelayArgs) -> Result<RelayArgs> {
        let mut relay = relay.clone();
        for (key, value) in &self.settings {
            match key.as_str() {
                "path" => relay.path = Some(value.into()),
                "workers" => match value.parse() {
                    Ok(workers) => relay.workers = workers,
                    Err(_) => bail!("variant {}: `{value}` is no number of workers", self.name),
                },
                "backend" => relay.backend.clone_from(value),
                key => relay.set_output_key(key, value),
            }
        }
        Ok(relay)
    }
}

impl FromStr for Variant {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let usage =
            || format!("`{text}`: write NAME:KEY=VALUE,..., as in two:workers=2,connections=per_worker");
        let (name, settings) = text.split_once(':').ok_or_else(usage)?;
        let others = Peer::value_variants().iter().map(|peer| peer.name());
        if others.chain([RELAY]).any(|taken| taken == name) {
            return Err(format!("`{name}` is the name of another contender"));
        }
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if name.is_empty() || !name.bytes().all(plain) {
            return Err(format!("`{name}`: a name has letters, digits, `-`, `_` and `.`"));
        }
        let pair = |pair: &str| pair.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
        let settings = settings.split(',').map(pair).collect::<Option<_>>().ok_or_else(usage)?;
        Ok(Self { name: name.to_owned(), settings })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relay() -> RelayArgs {
        RelayArgs {
            path: None,
            workers: 1,
            backend: "auto".to_owned(),
            relay_keys: "when_full=block&queue=64MiB".to_owned(),
        }
    }

    #[test]
    fn a_variant_replaces_what_it_names_and_keeps_the_rest() {
        let variant: Variant = "two:workers=2,connections=per_worker,queue=1MiB".parse().unwrap();
        let two = variant.of(&relay()).unwrap();
        assert_eq!(two.workers, 2);
        assert_eq!(two.relay_keys, "when_full=block&connections=per_worker&queue=1MiB");
        assert_eq!(two.backend, "auto");

        let variant: Variant = "disk:when_full=,buffer=disk".parse().unwrap();
        assert_eq!(variant.of(&relay()).unwrap().relay_keys, "queue=64MiB&buffer=disk");

        let variant: Variant = "old:path=/tmp/a:b/tapster,backend=epoll".parse().unwrap();
        let old = variant.of(&relay()).unwrap();
        assert_eq!((old.path, &*old.backend), (Some("/tmp/a:b/tapster".into()), "epoll"));
        assert_eq!(old.relay_keys, relay().relay_keys);
    }

    #[test]
    fn a_variant_has_a_name_of_its_own_and_settings() {
        for text in [
            "",
            "two",
            "two:",
            "two:workers",
            ":workers=2",
            "a b:workers=2",
            "floor:workers=2",
            "relay:workers=2",
        ] {
            assert!(text.parse::<Variant>().is_err(), "{text}");
        }
        let variant: Variant = "two:workers=many".parse().unwrap();
        assert!(variant.of(&relay()).unwrap_err().to_string().contains("many"));
    }
}
