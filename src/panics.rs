//! Catches panics at the edge of a thread, a request or a reload.

use std::any::Any;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};

use log::error;

/// Runs `work`; a panic is returned as its text instead of unwinding further.
pub(crate) fn catch<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| panic_text(panic.as_ref()).to_owned())
}

/// Runs `work`; `None` after a panic, which is logged with `what`.
pub(crate) fn caught<T>(what: impl Display, work: impl FnOnce() -> T) -> Option<T> {
    catch(work).inspect_err(|text| error!("{what} panicked: {text}")).ok()
}

/// The text of a panic, or a substitute where the panic has no text.
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
    fn a_panic_becomes_its_text() {
        assert_eq!(catch(|| 7), Ok(7));
        assert_eq!(catch(|| -> () { panic!("at {}", "the disco") }), Err("at the disco".to_owned()));
        assert_eq!(catch(|| -> () { panic!("plain") }), Err("plain".to_owned()));
        assert_eq!(catch(|| -> () { std::panic::panic_any(7) }), Err("a panic without a text".to_owned()));
        assert_eq!(caught("a test", || -> () { panic!("plain") }), None);
    }
}
