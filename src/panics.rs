//! Catches the panics of a thread, a request or a reload, so that the daemon continues to run.

use std::any::Any;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};

use log::error;

/// Runs `work` and returns its result, or the text of its panic as an error.
pub(crate) fn catch<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| panic_text(panic.as_ref()).to_owned())
}

/// Runs `work` and returns its result. Logs a panic, as a panic of `what`, and returns `None`.
pub(crate) fn caught<T>(what: impl Display, work: impl FnOnce() -> T) -> Option<T> {
    catch(work).inspect_err(|text| error!("{what} panicked: {text}")).ok()
}

/// Returns the text of a panic, or a substitute if the panic has no text.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without a text")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_returned_as_its_text() {
        assert_eq!(catch(|| 7), Ok(7));
        assert_eq!(catch(|| -> () { panic!("at {}", "the disco") }), Err("at the disco".to_owned()));
        assert_eq!(catch(|| -> () { panic!("plain") }), Err("plain".to_owned()));
        assert_eq!(catch(|| -> () { std::panic::panic_any(7) }), Err("a panic without a text".to_owned()));
        assert_eq!(caught("a test", || -> () { panic!("plain") }), None);
    }
}
