//! A scripted backend for tests.
