//! What a connection comes in by.

use std::sync::Arc;

use crate::output::subscriber;
use crate::relay::input_entry::InputId;

/// Whose listener accepts a connection.
#[derive(Clone, Debug)]
pub(crate) enum Door {
    /// An input: a writer connects.
    Input(InputId),
    /// An output: a reader connects.
    Output(Arc<subscriber::Door>),
}
