//! What a lane over connections is told of its output, at the start and while it runs.

use std::sync::Arc;
use std::time::Duration;

use crate::loops::Way;
use crate::observability::member_account::MemberAccount;
use crate::output::config::Buffer;
use crate::output::streams::Endpoints;
use crate::output::streams::StreamsConfig;
use crate::transport::tls::ReloadableClient;

/// The settings of a lane.
#[derive(Clone, Debug)]
pub(crate) struct LaneSettings {
    pub(crate) buffer: Buffer,
    pub(crate) streams: StreamsConfig,
    /// A reader that has something to take, and takes nothing for so long, is given up; `None`: never.
    pub(crate) stall_timeout: Option<Duration>,
    /// Accounts of the members of a group, in order; none for one reader.
    pub(crate) members: Vec<Arc<MemberAccount>>,
    /// Where the readers are, in order, as loops see them.
    pub(crate) ways: Vec<Arc<Way>>,
    /// What `tls` addresses are spoken to with.
    pub(crate) tls: Option<Arc<ReloadableClient>>,
    /// How long the connections of former settings may take for their end.
    pub(crate) renew_timeout: Duration,
}

impl LaneSettings {
    /// Whether connections that were opened with these settings serve `other` ones as well.
    pub(crate) fn connects_like(&self, other: &Self) -> bool {
        let (ours, others) = (&self.streams, &other.streams);
        ours.endpoints.addresses().eq(others.endpoints.addresses())
            && matches!(ours.endpoints, Endpoints::One(_)) == matches!(others.endpoints, Endpoints::One(_))
            && ours.mode == others.mode
            && ours.user_timeout == others.user_timeout
            && ours.tls == others.tls
    }
}
