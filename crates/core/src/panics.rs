//! Panics of foreign code.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Calls what may panic on data from outside, since it is not ours. What it worked on must not be used after that.
///
/// # Errors
/// The panic's message.
pub fn catch_panic<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        text.unwrap_or("it panicked without a message").to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::catch_panic;

    #[test]
    fn messages_of_panics() {
        assert_eq!(catch_panic(|| 7), Ok(7));
        assert_eq!(catch_panic(|| -> u8 { panic!("fixed") }), Err("fixed".to_owned()));
        assert_eq!(catch_panic(|| -> u8 { panic!("shapes {} and {}", 3, 4) }), Err("shapes 3 and 4".to_owned()));
        let other = catch_panic(|| std::panic::panic_any(7));
        assert_eq!(other, Err("it panicked without a message".to_owned()));
    }
}
