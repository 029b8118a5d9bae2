//! The keys of an `[[input]]`, and of an `[[output]]` that listens, that say who may connect.

use std::net::IpAddr;

use ipnet::IpNet;
use ipnet::Ipv4Net;

use crate::config::raw::Value;
use crate::config::section::Section;
use crate::config::value;
use crate::input::Access;
use crate::transport::Address;
use crate::transport::LocalId;
use crate::transport::SocketFileConfig;

/// Takes the keys, and says which of them mean nothing for these addresses, at which an input or output listens.
pub(super) fn take_access(
    section: &mut Section<'_>,
    listen: &[Address],
    access: &mut Access,
    socket_file: &mut SocketFileConfig,
) {
    set_list(section, "allow", network, &mut access.allow);
    set_list(section, "allow_users", user, &mut access.allow_users);
    set_list(section, "allow_groups", group, &mut access.allow_groups);
    access.proxy_from = take_proxy(section);
    access.connections_max_per_address =
        section.take("connections_max_per_address", value::integer(1..=CONNECTIONS_MAX));
    socket_file.mode = section.take("socket_mode", value::permission_bits);
    socket_file.user = section.take("socket_user", user);
    socket_file.group = section.take("socket_group", group);
    if !section.has("listen") && section.has("dial") {
        refuse(
            section,
            &OF_LISTENERS,
            "is for connections that tapster accepts, and this input only dials: leave this key out",
        );
    } else if !listen.is_empty() {
        check_kinds(section, listen, access);
    }
}

/// Who may send a PROXY header; `None` where there is none.
fn take_proxy(section: &mut Section<'_>) -> Option<Vec<IpNet>> {
    let mut from = Vec::new();
    set_list(section, "proxy_from", network, &mut from);
    let is_proxied = section.take("proxy_protocol", value::boolean);
    let is_wrong = is_proxied.is_none() && section.has("proxy_protocol");
    if is_proxied != Some(true) && !is_wrong && section.has("proxy_from") {
        section.fault("proxy_from", "means nothing without `proxy_protocol = true`".to_owned());
    }
    is_proxied?.then_some(from)
}

/// Keys that mean nothing for these addresses would be obeyed in vain.
fn check_kinds(section: &mut Section<'_>, listen: &[Address], access: &Access) {
    let (some_unix, all_unix) = (listen.iter().any(is_unix), listen.iter().all(is_unix));
    // It may be of either kind.
    let some_passed = listen.iter().any(|address| matches!(address, Address::Systemd(_)));
    let (file, peers) = (["socket_mode", "socket_user", "socket_group"], ["allow_users", "allow_groups"]);
    match (some_unix, some_passed) {
        (true, _) => {}
        (false, true) => {
            refuse(
                section,
                &file,
                "is for sockets that tapster makes: the socket unit has SocketMode=, SocketUser= and SocketGroup=",
            );
        }
        (false, false) => {
            let keys = [&file[..], &peers].concat();
            refuse(section, &keys, "is for unix sockets, and none is listened on here");
        }
    }
    // A PROXY header gives a peer an address.
    if all_unix && access.proxy_from.is_none() {
        refuse(
            section,
            &["allow", "connections_max_per_address"],
            "is for peers with an address, and only unix sockets are listened on here: `allow_users` and `allow_groups` are \
             for these",
        );
    }
    if !all_unix && !section.has("proxy_from") && access.proxy_from.is_some() {
        let message = "everyone who can connect can claim any address: name the proxies with `proxy_from`";
        section.warn("proxy_protocol", message.to_owned());
    }
}

fn refuse(section: &mut Section<'_>, keys: &[&str], why: &str) {
    for key in keys {
        if section.has(key) {
            section.fault(key, why.to_owned());
        }
    }
}

fn is_unix(address: &Address) -> bool {
    matches!(address, Address::Unix(_))
}

fn set_list<T>(
    section: &mut Section<'_>,
    key: &'static str,
    parse: impl Fn(&Value) -> Result<T, String>,
    target: &mut Vec<T>,
) {
    if let Some(list) = section.take_list(key, parse) {
        *target = list;
    }
}

/// A network, or an address alone. IPv4 within IPv6 is IPv4.
fn network(value: &Value) -> Result<IpNet, String> {
    let written = value::text(value)?;
    let network = match written.parse::<IpAddr>() {
        Ok(address) => Some(IpNet::from(address)),
        Err(_) => written.parse::<IpNet>().ok(),
    };
    let network = network.ok_or_else(|| {
        format!(
            "`{written}` is no network: write it as in \"10.0.0.0/8\", \"2001:db8::/32\" or \"192.0.2.1\""
        )
    })?;
    let whole = network.trunc();
    if whole != network {
        return Err(format!(
            "`{written}` has an address that is not the first one of its network: write {whole}, or {} for that address alone",
            network.addr()
        ));
    }
    Ok(match network {
        IpNet::V6(v6) if v6.prefix_len() >= MAPPED_PREFIX_LEN => match v6.addr().to_ipv4_mapped() {
            Some(v4) => Ipv4Net::new(v4, v6.prefix_len() - MAPPED_PREFIX_LEN)
                .expect("96 to 128, less 96, is 0 to 32")
                .into(),
            None => network,
        },
        _ => network,
    })
}

fn user(value: &Value) -> Result<LocalId, String> {
    let written = local_name(value)?;
    LocalId::user(&written).ok_or_else(|| {
        format!("there is no user `{written}` in /etc/passwd: write a name that is there, or a number")
    })
}

fn group(value: &Value) -> Result<LocalId, String> {
    let written = local_name(value)?;
    LocalId::group(&written).ok_or_else(|| {
        format!("there is no group `{written}` in /etc/group: write a name that is there, or a number")
    })
}

fn local_name(value: &Value) -> Result<String, String> {
    match value {
        Value::Integer(number) => Ok(number.to_string()),
        value => value::text(value),
    }
}

/// Keys that mean nothing where no connection is accepted.
const OF_LISTENERS: [&str; 11] = [
    "connections_max",
    "connections_max_per_address",
    "max_connection_age",
    "allow",
    "allow_users",
    "allow_groups",
    "proxy_protocol",
    "proxy_from",
    "socket_mode",
    "socket_user",
    "socket_group",
];

/// More descriptors than this no kernel gives to a process by default (`fs.nr_open`).
pub(super) const CONNECTIONS_MAX: usize = 1 << 20;
/// `::ffff:0:0/96` has the addresses of IPv4.
const MAPPED_PREFIX_LEN: u8 = 96;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::resolve_toml;

    #[test]
    fn networks_are_written_in_the_usual_ways() {
        let parsed = |text: &str| network(&Value::Text(text.to_owned())).map(|network| network.to_string());
        for (written, shown) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("192.0.2.1", "192.0.2.1/32"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("::1", "::1/128"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("::/0", "::/0"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:192.0.2.1", "192.0.2.1/32"),
        ] {
            assert_eq!(parsed(written).as_deref(), Ok(shown), "{written}");
        }
        for written in ["", "10.0.0.0/33", "10.0.0/8", "example.org", "::/129", "10.0.0.0/8/8", "[::1]/128"] {
            assert!(parsed(written).is_err(), "{written}");
        }
        let fault = parsed("10.1.2.3/8").unwrap_err();
        assert!(fault.contains("write 10.0.0.0/8, or 10.1.2.3 for"), "{fault}");
        assert!(network(&Value::Integer(10)).is_err());
    }

    /// The faults of an input with these keys.
    fn keys_at_fault(input: &str) -> Vec<String> {
        let faults = resolve_toml(&format!("[[input]]\n{input}")).err().map(|faults| faults.0);
        faults.unwrap_or_default().into_iter().map(|fault| fault.key).collect()
    }

    #[test]
    fn keys_that_mean_nothing_for_the_addresses_of_an_input_are_refused() {
        let (tcp, unix) = ("listen = \"tcp://127.0.0.1:1\"", "listen = \"unix:/a\"");
        for key in ["socket_user", "socket_group", "allow_users", "allow_groups"] {
            assert_eq!(keys_at_fault(&format!("{tcp}\n{key} = 0")), [format!("input[0].{key}")]);
            assert_eq!(keys_at_fault(&format!("{unix}\n{key} = 0")), [""; 0]);
        }
        for key in ["allow = \"10.0.0.0/8\"", "connections_max_per_address = 1"] {
            let name = key.split(' ').next().unwrap();
            assert_eq!(keys_at_fault(&format!("{unix}\n{key}")), [format!("input[0].{name}")]);
            assert_eq!(keys_at_fault(&format!("{tcp}\n{key}")), [""; 0]);
            assert_eq!(keys_at_fault(&format!("{unix}\n{key}\nproxy_protocol = true")), [""; 0]);
        }
    }

    #[test]
    fn keys_of_listeners_are_refused_where_an_input_only_dials() {
        let dial = "dial = \"tcp://127.0.0.1:1\"";
        for key in OF_LISTENERS {
            let value = match key {
                "connections_max" | "connections_max_per_address" => "1",
                "max_connection_age" => "\"1h\"",
                "allow" => "\"10.0.0.0/8\"",
                "proxy_protocol" => "true",
                "proxy_from" => "\"10.0.0.0/8\"\nproxy_protocol = false",
                "socket_mode" => "\"0660\"",
                _ => "0",
            };
            let keys = keys_at_fault(&format!("{dial}\n{key} = {value}"));
            assert!(keys.contains(&format!("input[0].{key}")), "{key}: {keys:?}");
        }
        let both =
            "listen = [\"unix:/a\", \"tcp://127.0.0.1:2\"]\nconnections_max = 3\nmax_connection_age = \"1h\"";
        assert_eq!(keys_at_fault(&format!("{dial}\n{both}\nsocket_mode = \"0660\"")), [""; 0]);
    }

    #[test]
    fn who_may_send_a_proxy_header_should_be_said() {
        let resolved = |keys: &str| {
            let resolved =
                resolve_toml(&format!("[[input]]\nlisten = \"tcp://127.0.0.1:1\"\n{keys}")).unwrap();
            (resolved.config.inputs[0].access.proxy_from.clone(), resolved.warnings.len())
        };
        assert_eq!(resolved("proxy_protocol = false"), (None, 0));
        assert_eq!(resolved("proxy_protocol = true"), (Some(Vec::new()), 1));
        let from = Some(vec!["10.0.0.0/8".parse().unwrap()]);
        assert_eq!(resolved("proxy_protocol = true\nproxy_from = \"10.0.0.0/8\""), (from, 0));
        for keys in ["", "proxy_protocol = false\n"] {
            let keys = format!("listen = \"tcp://127.0.0.1:1\"\n{keys}proxy_from = \"10.0.0.0/8\"");
            assert_eq!(keys_at_fault(&keys), ["input[0].proxy_from"]);
        }
        let keys = "listen = \"tcp://127.0.0.1:1\"\nproxy_protocol = 1\nproxy_from = \"10.0.0.0/8\"";
        assert_eq!(keys_at_fault(keys), ["input[0].proxy_protocol"]);
    }

    #[test]
    fn every_network_user_and_group_is_looked_at() {
        let both = "listen = [\"tcp://127.0.0.1:1\", \"unix:/a\"]";
        let keys = "allow = [\"10.0.0.0/8\", \"10.0.0.1/8\", \"x\"]\nallow_users = [\"no-one\", 1]\nallow_groups = []\n\
                    socket_user = \"no-one\"\nconnections_max_per_address = 0";
        assert_eq!(
            keys_at_fault(&format!("{both}\n{keys}")),
            [
                "allow[1]",
                "allow[2]",
                "allow_users[0]",
                "allow_groups",
                "socket_user",
                "connections_max_per_address"
            ]
            .map(|key| format!("input[0].{key}"))
        );
    }

    #[test]
    fn users_and_groups_have_a_name_or_a_number() {
        assert_eq!(user(&Value::Integer(53)).unwrap().id(), 53);
        assert_eq!(group(&Value::Text("root".to_owned())).unwrap().id(), 0);
        let fault = user(&Value::Text("unbond".to_owned())).unwrap_err();
        assert!(fault.contains("no user `unbond`"), "{fault}");
        assert!(group(&Value::Integer(-1)).is_err() && user(&Value::Boolean(true)).is_err());
    }
}
