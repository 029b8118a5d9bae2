//! Why connections are refused.

/// Why an input closed a connection without an answer, before its handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rejection {
    /// As many connections as `connections_max` allows are open.
    Limit,
    /// As many connections of one address as `connections_max_per_address` allows are open.
    LimitAddress,
    /// The address of the peer is not in `allow`.
    NotAllowed,
    /// The user and the group of a local process are not in `allow_users` and `allow_groups`.
    Peer,
    /// No PROXY header that this input takes, or one of a peer that may not send it.
    ProxyHeader,
}

impl Rejection {
    /// All reasons, in the order of their numbers.
    pub(crate) const ALL: [Self; 5] =
        [Self::Limit, Self::LimitAddress, Self::NotAllowed, Self::Peer, Self::ProxyHeader];

    /// The reason as it stands in the ledger.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::LimitAddress => "limit_address",
            Self::NotAllowed => "not_allowed",
            Self::Peer => "peer",
            Self::ProxyHeader => "proxy_header",
        }
    }
}
