//! The keys of the admin addresses: `admin`, `admin_token_file`, `admin_hosts`.

use std::env;
use std::net::IpAddr;
use std::path::Path;
use std::path::PathBuf;

use crate::config::files::read_files;
use crate::config::raw::Value;
use crate::config::raw::from_toml;
use crate::config::section::Findings;
use crate::config::section::Origin;
use crate::config::section::Section;
use crate::config::token::Token;
use crate::config::value;
use crate::input::InputConfig;
use crate::transport::Address;

/// Where the process answers those who operate it, and whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdminConfig {
    /// Addresses that were configured, none to be silent; `None`: the default ones, as far as they can be had.
    pub listen: Option<Vec<Address>>,
    /// The file that the token was read from.
    pub token_file: Option<PathBuf>,
    /// What opens the addresses on TCP.
    pub token: Option<Token>,
    /// More names that the header `Host` may have, in lower case.
    pub hosts: Vec<String>,
}

impl AdminConfig {
    /// The addresses, those that stand for themselves where none is configured.
    pub fn addresses(&self) -> Vec<Address> {
        self.listen.clone().unwrap_or_else(default_addresses)
    }
}

/// Where a process answers that was told nothing else: a socket in the run-time folder of its user, and a port of the loopback.
///
/// The run-time folder is `$RUNTIME_DIRECTORY`, which systemd sets for a service that has one, else `/run/tapster` for root,
/// `$XDG_RUNTIME_DIR/tapster` for others, and without that a folder of the user in `/tmp`.
pub fn default_addresses() -> Vec<Address> {
    let folder = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let user = rustix::process::geteuid();
    let folder = match (folder("RUNTIME_DIRECTORY"), folder("XDG_RUNTIME_DIR")) {
        (Some(folder), _) => folder,
        (None, _) if user.is_root() => PathBuf::from("/run/tapster"),
        (None, Some(folder)) => folder.join("tapster"),
        (None, None) => env::temp_dir().join(format!("tapster-{}", user.as_raw())),
    };
    vec![
        Address::Unix(folder.join("admin.sock")),
        Address::Tcp { host: "127.0.0.1".to_owned(), port: ADMIN_PORT },
    ]
}

/// The keys as they were written, in whichever of the documents.
#[derive(Debug, Default)]
pub(super) struct AdminKeys {
    config: AdminConfig,
    // Where the addresses were written.
    origin: Option<Origin>,
}

impl AdminKeys {
    /// Takes the keys from one document; what came before stays where they are not in it.
    pub(super) fn take(&mut self, top: &mut Section<'_>) {
        if top.has("admin") {
            self.origin = Some(top.origin_of("admin"));
        }
        if top.is_empty_list("admin") {
            top.take("admin", |_| Ok(()));
            self.config.listen = Some(Vec::new());
        } else if let Some(listen) = top.take_list("admin", value::admin_address) {
            self.config.listen = Some(listen);
        }
        if let Some((path, token)) = top.take("admin_token_file", token_file) {
            self.config.token_file = Some(path);
            self.config.token = Some(token);
        }
        if let Some(hosts) = top.take_list("admin_hosts", host_name) {
            self.config.hosts = hosts;
        }
    }

    /// The configuration, once every document was taken.
    pub(super) fn finish(self, inputs: &[&InputConfig], findings: &mut Findings) -> AdminConfig {
        let Self { config, origin } = self;
        let (Some(origin), Some(listen)) = (origin, &config.listen) else { return config };
        for (index, address) in listen.iter().enumerate() {
            if config.token_file.is_none() && !is_local(address) {
                let message = format!(
                    "{address} can be reached from other hosts: name the file of a token in `admin_token_file`, or listen on \
                     tcp://127.0.0.1:{ADMIN_PORT}"
                );
                findings.fault(&origin, "", message);
            }
            if address.has_any_port() {
                continue;
            }
            let input = inputs.iter().find(|input| input.listen.contains(address));
            if let Some(input) = input {
                let message = format!("{address} is listened on by input `{}` too", input.name);
                findings.fault(&origin, "", message);
            } else if listen.iter().take(index).any(|other| other == address) {
                findings.fault(&origin, "", format!("{address} is there twice"));
            }
        }
        config
    }
}

/// Where a process with these configuration files answers. Faults of the files are passed over: that process tells them.
pub fn admin_addresses(files: &[PathBuf]) -> Vec<Address> {
    let mut listen = None;
    for document in read_files(files) {
        let (table, _) = from_toml(&document.text.unwrap_or_default());
        let mut findings = Findings::default();
        let mut top = Section::new(document.origin, table, &mut findings);
        if top.is_empty_list("admin") {
            listen = Some(Vec::new());
        }
        listen = top.take_list("admin", value::admin_address).or(listen);
    }
    AdminConfig { listen, ..AdminConfig::default() }.addresses()
}

/// Whether nobody reaches the address from another host.
pub fn is_local(address: &Address) -> bool {
    match address {
        Address::Unix(_) => true,
        Address::Systemd(_) => false,
        Address::Tcp { host, .. } | Address::Tls { host, .. } => {
            host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
        }
    }
}

fn token_file(value: &Value) -> Result<(PathBuf, Token), String> {
    let path = PathBuf::from(value::text(value)?);
    Token::read(Path::new(&path)).map(|token| (path, token))
}

fn host_name(value: &Value) -> Result<String, String> {
    let name = value::text(value)?.to_ascii_lowercase();
    let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    if is_name || name.parse::<IpAddr>().is_ok() {
        return Ok(name);
    }
    Err(format!("`{name}` is not the name or the address of a host: write it without scheme and port"))
}

/// Of the default address.
const ADMIN_PORT: u16 = 9653;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::slice;

    use super::*;
    use crate::config::Resolved;
    use crate::config::fault::Faults;
    use crate::config::resolve_toml;

    fn admin(document: &str) -> Result<AdminConfig, String> {
        resolve_toml(document)
            .map(|Resolved { admin, .. }| admin)
            .map_err(|faults: Faults| faults.to_string())
    }

    fn tcp(host: &str, port: u16) -> Address {
        Address::Tcp { host: host.to_owned(), port }
    }

    #[test]
    fn addresses_are_the_default_ones_those_that_were_written_or_none() {
        let default = admin("").unwrap();
        assert_eq!(default, AdminConfig::default());
        assert!(
            matches!(&default.addresses()[..], [Address::Unix(path), tcp] if path.ends_with("admin.sock") && is_local(tcp))
        );
        assert_eq!(admin("admin = []").unwrap().addresses(), []);
        let written =
            admin("admin = [\"unix:/a\", \"tcp://[::1]:0\"]\nadmin_hosts = [\"Tap1.example\"]").unwrap();
        assert_eq!(written.addresses(), [Address::Unix("/a".into()), tcp("::1", 0)]);
        assert_eq!(written.hosts, ["tap1.example"]);
        assert_eq!(admin("admin = \"unix:/a\"").unwrap().addresses().len(), 1);
    }

    #[test]
    fn what_others_can_reach_needs_a_token_and_no_address_is_there_twice() {
        for address in ["tcp://0.0.0.0:9653", "tcp://tap1.example:9653", "tcp://[::]:1"] {
            let fault = admin(&format!("\nadmin = \"{address}\"")).unwrap_err();
            assert!(
                fault.contains("configuration:2: admin: ") && fault.contains("admin_token_file"),
                "{fault}"
            );
        }
        let fault = admin("admin = [\"unix:/a\", \"unix:/a\"]").unwrap_err();
        assert!(fault.contains("unix:/a is there twice"), "{fault}");
        let fault = admin("admin = \"unix:/a\"\n[[input]]\nname = \"i\"\nlisten = \"unix:/a\"").unwrap_err();
        assert!(fault.contains("listened on by input `i` too"), "{fault}");
        for host in ["http://a", "a:1", "a b", "[::1]"] {
            assert!(
                admin(&format!("admin_hosts = \"{host}\"")).unwrap_err().contains("without scheme"),
                "{host}"
            );
        }
    }

    #[test]
    fn the_token_is_read_and_one_that_cannot_be_is_a_fault_with_its_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "geheim").unwrap();
        let path = file.path().display();
        let found = admin(&format!("admin = \"tcp://0.0.0.0:1\"\nadmin_token_file = \"{path}\"")).unwrap();
        assert!(found.token.unwrap().is(b"geheim"));
        let fault = admin("admin_token_file = \"/nonexistent\"").unwrap_err();
        assert!(fault.contains("configuration:1: admin_token_file: /nonexistent cannot be read"), "{fault}");
    }

    #[test]
    fn files_with_faults_tell_where_their_process_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.toml");
        fs::write(
            &path,
            "workers = [\nx = 1\nadmin = [\"unix:/run/a\"]\nadmin_token_file = \"/nonexistent\"\n[[output]]",
        )
        .unwrap();
        assert_eq!(
            admin_addresses(slice::from_ref(&path)),
            default_addresses(),
            "nothing is left of such a file"
        );
        fs::write(
            &path,
            "workers = \"many\"\nadmin = [\"unix:/run/a\"]\nadmin_token_file = \"/nonexistent\"",
        )
        .unwrap();
        assert_eq!(admin_addresses(slice::from_ref(&path)), [Address::Unix("/run/a".into())]);
        fs::write(&path, "admin = []").unwrap();
        assert_eq!(admin_addresses(&[path]), []);
    }
}
