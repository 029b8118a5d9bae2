//! The connections of one output: opened, written to, listened to and closed, each to its end.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Context;
use std::task::Poll;

use bytes::Bytes;

use crate::delivery::action::StreamId;
use crate::session::write::WriteEvent;
use crate::session::write::WriteStream;
use crate::session::write_fault::WriteFault;

/// What happens on a connection.
#[derive(Debug)]
pub(crate) enum LinkEvent {
    /// The connection is there, past its handshake.
    Connected,
    /// No connection can be opened.
    Refused(WriteFault),
    /// So many more bytes are written.
    Written(usize),
    /// The stream is acknowledged.
    Finished,
    /// The connection has ended.
    Lost(WriteFault),
}

/// A connection that is being opened. It may be dropped at any time.
pub(crate) type Opening = Pin<Box<dyn Future<Output = Result<WriteStream, WriteFault>>>>;

/// The connections of one output.
#[derive(Default)]
pub(crate) struct Links(Vec<(StreamId, Link)>);

enum Link {
    Opening(Opening),
    Open(Box<WriteStream>),
    // Every operation of it is polled to its end: the ring may own a buffer.
    Closing(Box<WriteStream>),
}

impl Links {
    /// Opens a connection.
    pub(crate) fn open(&mut self, stream: StreamId, opening: Opening) {
        self.0.push((stream, Link::Opening(opening)));
    }

    /// Takes a connection that is open.
    pub(crate) fn adopt(&mut self, stream: StreamId, open: WriteStream) {
        self.0.push((stream, Link::Open(Box::new(open))));
    }

    /// Writes, see [`WriteStream::write`].
    ///
    /// # Errors
    /// The connection has ended.
    pub(crate) fn write(
        &mut self,
        stream: StreamId,
        buffers: impl Iterator<Item = Bytes>,
    ) -> Result<Option<usize>, WriteFault> {
        self.get(stream).map_or(Ok(None), |open| open.write(buffers))
    }

    /// An open connection.
    pub(crate) fn get(&mut self, stream: StreamId) -> Option<&mut WriteStream> {
        self.0.iter_mut().find_map(|(id, link)| match link {
            Link::Open(open) if *id == stream => Some(&mut **open),
            _ => None,
        })
    }

    /// Whether a connection to this member is open.
    pub(crate) fn is_open_to(&self, member: usize) -> bool {
        self.0.iter().any(|(id, link)| id.member == member && matches!(link, Link::Open(_)))
    }

    /// The open connections.
    pub(crate) fn open_streams(&self) -> impl Iterator<Item = StreamId> {
        self.0.iter().filter(|(_, link)| matches!(link, Link::Open(_))).map(|(id, _)| *id)
    }

    /// Closes a connection, or gives up to open it.
    pub(crate) fn close(&mut self, stream: StreamId) {
        let Some(index) = self.0.iter().position(|(id, _)| *id == stream) else { return };
        let (id, link) = self.0.swap_remove(index);
        if let Link::Open(mut open) = link {
            open.close();
            self.0.push((id, Link::Closing(open)));
        }
    }

    /// The next thing that happens on any of them. Cancel-safe. Never ready where there is none.
    pub(crate) async fn next(&mut self) -> (StreamId, LinkEvent) {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// Waits until every connection that was closed is gone. Cancel-safe.
    pub(crate) async fn all_closed(&mut self) {
        poll_fn(|context| {
            // Nobody cares for what happens on the others.
            let _ = self.poll_next(context);
            let open = self.0.iter().any(|(_, link)| matches!(link, Link::Closing(_)));
            if open { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<(StreamId, LinkEvent)> {
        let mut index = 0;
        while let Some((id, link)) = self.0.get_mut(index) {
            let id = *id;
            match link {
                Link::Opening(opening) => match opening.as_mut().poll(context) {
                    Poll::Ready(Ok(open)) => {
                        *link = Link::Open(Box::new(open));
                        return Poll::Ready((id, LinkEvent::Connected));
                    }
                    Poll::Ready(Err(fault)) => {
                        self.0.swap_remove(index);
                        return Poll::Ready((id, LinkEvent::Refused(fault)));
                    }
                    Poll::Pending => {}
                },
                Link::Open(open) => match open.poll_event(context) {
                    Poll::Ready(WriteEvent::Written(count)) => {
                        return Poll::Ready((id, LinkEvent::Written(count)));
                    }
                    Poll::Ready(WriteEvent::Finished) => return Poll::Ready((id, LinkEvent::Finished)),
                    Poll::Ready(WriteEvent::Lost(fault)) => return Poll::Ready((id, LinkEvent::Lost(fault))),
                    Poll::Pending => {}
                },
                Link::Closing(open) => {
                    if open.poll_closed(context).is_ready() {
                        self.0.swap_remove(index);
                        continue;
                    }
                }
            }
            index += 1;
        }
        Poll::Pending
    }
}
