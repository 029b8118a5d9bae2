//! Who may connect.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::observability::peer_name::PeerName;
use crate::transport::LocalId;

/// Who may connect to an input or to an output that listens. By default: whoever can reach it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Networks that the address of a peer must be in one of; empty: any address. A peer without an address, over a unix
    /// socket, is not concerned.
    pub allow: Vec<IpNet>,
    /// Users that may connect to unix sockets, and `allow_groups`; where both are empty: any.
    pub allow_users: Vec<LocalId>,
    /// Groups that may connect to unix sockets: the primary group of the peer must be one of them, unless its user is in
    /// `allow_users`.
    pub allow_groups: Vec<LocalId>,
    /// Whether a connection begins with a PROXY header, which names its peer, and the networks that such connections may come
    /// from; empty: any. `None`: there is no header.
    pub proxy_from: Option<Vec<IpNet>>,
    /// Connections of one address at the same time, of one /64 of IPv6; `None`: any number.
    pub connections_max_per_address: Option<usize>,
}

impl Access {
    /// Whether a network of `allow` has the address.
    pub(super) fn allows(&self, address: IpAddr) -> bool {
        self.allow.is_empty() || is_within(address, &self.allow)
    }

    /// Whether this address may send a PROXY header.
    pub(super) fn allows_proxy(&self, address: IpAddr) -> bool {
        self.proxy_from.as_ref().is_some_and(|from| from.is_empty() || is_within(address, from))
    }

    /// Whether the process at the other end of a unix socket may connect. A peer with an address is not concerned.
    pub(super) fn allows_process(&self, peer: &PeerName) -> bool {
        let has = |ids: &[LocalId], id: u32| ids.iter().any(|listed| listed.id() == id);
        match peer {
            PeerName::Tcp(_) => true,
            PeerName::Unix(_) if self.allow_users.is_empty() && self.allow_groups.is_empty() => true,
            PeerName::Unix(process) => process.as_ref().is_some_and(|process| {
                has(&self.allow_users, process.uid) || has(&self.allow_groups, process.gid)
            }),
        }
    }
}

/// Whether one of the networks has the address. IPv4 within IPv6 counts as IPv4.
fn is_within(address: IpAddr, networks: &[IpNet]) -> bool {
    let address = address.to_canonical();
    networks.iter().any(|network| network.contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observability::peer_name::LocalPeer;

    fn networks(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn an_address_is_in_a_network_by_its_first_bits() {
        let access =
            Access { allow: networks(&["10.0.0.0/8", "192.0.2.7/32", "2001:db8::/33"]), ..Access::default() };
        for (address, allowed) in [
            ("10.0.0.0", true),
            ("10.255.255.255", true),
            ("11.0.0.0", false),
            ("9.255.255.255", false),
            ("192.0.2.7", true),
            ("192.0.2.6", false),
            ("::ffff:10.1.2.3", true),
            ("::ffff:11.1.2.3", false),
            ("::10.1.2.3", false),
            ("2001:db8:7fff::1", true),
            ("2001:db8:8000::1", false),
            ("::1", false),
        ] {
            assert_eq!(access.allows(address.parse().unwrap()), allowed, "{address}");
        }
        assert!(Access::default().allows("203.0.113.1".parse().unwrap()));
        let any = Access { allow: networks(&["0.0.0.0/0"]), ..Access::default() };
        assert!(any.allows("::ffff:1.2.3.4".parse().unwrap()) && !any.allows("::1".parse().unwrap()));
    }

    #[test]
    fn a_process_needs_its_user_or_its_group_and_root_is_a_user_like_others() {
        let local =
            |uid, gid| PeerName::Unix(Some(LocalPeer { pid: None, uid, gid, user: None, program: None }));
        let ids = |texts: &[&str]| texts.iter().map(|text| LocalId::user(text).unwrap()).collect();
        let access =
            Access { allow_users: ids(&["53"]), allow_groups: ids(&["70", "71"]), ..Access::default() };
        for (uid, gid, allowed) in
            [(53, 1, true), (1, 71, true), (53, 70, true), (70, 53, false), (0, 0, false)]
        {
            assert_eq!(access.allows_process(&local(uid, gid)), allowed, "{uid} {gid}");
        }
        assert!(!access.allows_process(&PeerName::Unix(None)), "the kernel does not say who");
        assert!(access.allows_process(&PeerName::Tcp(([127, 0, 0, 1], 1).into())));
        let users = Access { allow_users: ids(&["53"]), ..Access::default() };
        assert!(!users.allows_process(&local(1, 53)));
        assert!(Access::default().allows_process(&PeerName::Unix(None)));
    }
}
