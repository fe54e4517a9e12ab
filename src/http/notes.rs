//! What a handler found out about a head, kept until the body is there.
//!
//! The server carries it and cannot look inside. Where a request ends before its body is complete, it is dropped.

use std::any::Any;
use std::fmt;

/// Notes of a handler for itself; nothing by default.
#[derive(Default)]
pub struct Notes(Option<Box<dyn Any + Send>>);

impl Notes {
    /// Nothing to remember.
    pub fn none() -> Self {
        Self::default()
    }

    /// Remembers `value`.
    pub fn of<T: Any + Send>(value: T) -> Self {
        Notes(Some(Box::new(value)))
    }

    /// What was remembered; `None` where there is nothing, or something of another type.
    pub fn take<T: Any>(&mut self) -> Option<Box<T>> {
        self.0.take()?.downcast().ok()
    }
}

impl fmt::Debug for Notes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(if self.0.is_some() { "Notes" } else { "no notes" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_comes_back_once_and_only_as_what_it_was() {
        let mut notes = Notes::of("topic".to_owned());
        assert_eq!(notes.take::<String>().as_deref(), Some(&"topic".to_owned()));
        assert_eq!(notes.take::<String>(), None);
        assert_eq!(Notes::of(1_u8).take::<String>(), None);
        assert_eq!(Notes::none().take::<u8>(), None);
    }
}
