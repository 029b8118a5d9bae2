//! The lanes that one worker feeds. They come and go while frames flow.
//!
//! The relay gives a worker a new table when an output is added, changed or removed. A connection compares a number before
//! each batch, and takes its lanes from the table again when the number has changed.

use std::cell::Cell;
use std::cell::RefCell;
use std::rc::Rc;

use crate::protocol::ContentType;
use crate::route::Fanout;
use crate::route::Inlet;

/// The table of one worker.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    version: Cell<u64>,
    inlets: RefCell<Vec<Inlet>>,
}

impl Routes {
    /// Puts these lanes in place of the former ones.
    pub(crate) fn set(&self, inlets: Vec<Inlet>) {
        self.version.update(|version| version + 1);
        // Dropped behind the borrow: a queue may go with it.
        let _former = self.inlets.replace(inlets);
    }
}

/// The way of one connection: the lanes of its content type, as the table has them now.
#[derive(Debug)]
pub(crate) struct Route {
    routes: Rc<Routes>,
    content_type: Option<ContentType>,
    version: Cell<u64>,
    fanout: RefCell<Rc<Fanout>>,
}

impl Route {
    /// The way of a new connection; `None`: a stream without a type.
    pub(crate) fn new(routes: &Rc<Routes>, content_type: Option<ContentType>) -> Self {
        let fanout = Fanout::new(&routes.inlets.borrow(), content_type.as_ref());
        Self {
            version: Cell::new(routes.version.get()),
            routes: Rc::clone(routes),
            content_type,
            fanout: RefCell::new(Rc::new(fanout)),
        }
    }

    /// The lanes for what comes next.
    pub(crate) fn fanout(&self) -> Rc<Fanout> {
        let version = self.routes.version.get();
        if self.version.get() != version {
            self.version.set(version);
            let renewed =
                self.fanout.borrow().renew(&self.routes.inlets.borrow(), self.content_type.as_ref());
            self.fanout.replace(Rc::new(renewed));
        }
        Rc::clone(&self.fanout.borrow())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::fanout::tests::inlet;

    #[test]
    fn a_connection_follows_the_table_and_stays_the_same_connection() {
        let routes = Rc::<Routes>::default();
        routes.set(vec![inlet("a", 100)]);
        let route = Route::new(&routes, ContentType::try_from("a").ok());
        let (first, again) = (route.fanout(), route.fanout());
        assert!(Rc::ptr_eq(&first, &again));
        routes.set(vec![inlet("a", 100), inlet("b", 100), inlet("a", 100)]);
        let renewed = route.fanout();
        assert_eq!((first.lanes(), renewed.lanes()), (1, 2));
        assert_eq!(first.connection(), renewed.connection());
        routes.set(Vec::new());
        assert!(route.fanout().is_empty());
    }
}
