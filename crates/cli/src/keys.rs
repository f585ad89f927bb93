//! Every key of the configuration, with its default: what the config file may say, what flags set, and what
//! `--print-config` prints.

/// A key of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) table: &'static str,
    pub(crate) name: &'static str,
    /// As TOML, or in words in angle brackets where it depends.
    pub(crate) default: &'static str,
}

const fn key(table: &'static str, name: &'static str, default: &'static str) -> Key {
    Key { table, name, default }
}

/// The tables, in the order in which they are printed.
pub(crate) const TABLES: [&str; 7] = ["input", "output", "task", "sampling", "images", "run", "backend"];

/// The kinds of backends.
pub(crate) const BACKENDS: [&str; 3] = ["local", "inference-endpoints", "mock"];

const MODEL: &str = "<the model's own>";
const NONE: &str = "<none>";

/// All keys but those of `[backend]`.
pub(crate) const KEYS: &[Key] = &[
    key("input", "path", NONE),
    key("input", "format", "<by name and content>"),
    key("input", "globs", "[]"),
    key("input", "instruction", NONE),
    key("input", "instruction_suffix", NONE),
    key("input", "skip", "0"),
    key("input", "sample", "<all rows>"),
    key("input", "limit", "<all rows>"),
    key("input", "shard", NONE),
    key("input", "max_line_bytes", "\"256MiB\""),
    key("output", "path", "\"-\""),
    key("output", "format", "<by name>"),
    key("output", "overwrite", "false"),
    key("output", "resume", "\"auto\""),
    key("output", "retry_failed", "false"),
    key("output", "only", "[]"),
    key("output", "sync_seconds", "1.0"),
    key("output", "sync_rows", NONE),
    key("output", "row_group_rows", "10000"),
    key("output", "images", "\"keep\""),
    key("output", "sidecar_suffix", "\".txt\""),
    key("task", "name", "\"text_generation_with_image_0\""),
    key("task", "template", "\"{{ instruction }}\""),
    key("task", "columns", "[\"instruction\"]"),
    key("task", "system_prompt", NONE),
    key("task", "image_type", "\"url\""),
    key("task", "image_column", "\"image\""),
    key("task", "image_required", "<true, but for a model that reads text only>"),
    key("task", "image_position", "<\"first\" for the local backend, else \"as_given\">"),
    key("task", "num_generations", "1"),
    key("task", "group_generations", "false"),
    key("task", "add_raw_input", "true"),
    key("task", "add_raw_output", "true"),
    key("task", "input_mappings", "{}"),
    key("task", "output_mappings", "{}"),
    key("task", "undefined", "\"strict\""),
    key("task", "column_check", "\"variables\""),
    key("task", "image_check", "\"strict\""),
    key("task", "raw_images", "\"digest\""),
    key("task", "row_system_prompt", "true"),
    key("task", "structured_output_column", NONE),
    key("task", "template_fuel", "5000000"),
    key("sampling", "max_new_tokens", MODEL),
    key("sampling", "min_new_tokens", MODEL),
    key("sampling", "temperature", MODEL),
    key("sampling", "top_p", MODEL),
    key("sampling", "top_k", MODEL),
    key("sampling", "min_p", MODEL),
    key("sampling", "typical_p", MODEL),
    key("sampling", "repetition_penalty", MODEL),
    key("sampling", "frequency_penalty", MODEL),
    key("sampling", "presence_penalty", MODEL),
    key("sampling", "logit_bias", "{}"),
    key("sampling", "bad_words", "[]"),
    key("sampling", "stop", "[]"),
    key("sampling", "include_stop", "false"),
    key("sampling", "stop_token_ids", "[]"),
    key("sampling", "ignore_eos", "false"),
    key("sampling", "seed", "<0 for the local backend, else the server's>"),
    key("sampling", "logprobs", "false"),
    key("sampling", "top_logprobs", "0"),
    key("sampling", "echo", "false"),
    key("sampling", "json_schema", NONE),
    key("sampling", "regex", NONE),
    key("sampling", "choice", NONE),
    key("images", "max_bytes", "\"64MiB\""),
    key("images", "max_pixels", "89478485"),
    key("images", "max_redirects", "5"),
    key("images", "retries", "2"),
    key("images", "connect_timeout", "10.0"),
    key("images", "timeout", "60.0"),
    key("images", "allow_private_addresses", "false"),
    key("run", "row_timeout", NONE),
    key("run", "window", "<as many as keep the backend busy>"),
    key("run", "max_errors", NONE),
    key("run", "quiet", "false"),
    key("run", "stats", NONE),
    key("run", "progress", "\"auto\""),
    key("run", "progress_interval", "10.0"),
    key("run", "lint", "\"warn\""),
];

const LOCAL: &[Key] = &[
    key("backend", "kind", NONE),
    key("backend", "model", NONE),
    key("backend", "revision", "\"main\""),
    key("backend", "device", "\"auto\""),
    key("backend", "devices", "[]"),
    key("backend", "fixed_shapes", "true"),
    key("backend", "dtype", "\"auto\""),
    key("backend", "tensor_types", "[]"),
    key("backend", "kv_dtype", "\"auto\""),
    key("backend", "reference", "\"meta\""),
    key("backend", "batch_size", "<8, on a GPU what fits>"),
    key("backend", "step_tokens", "512"),
    key("backend", "threads", "<one for each core>"),
    key("backend", "prepare_threads", "2"),
    key("backend", "image_cache", "\"1GiB\""),
    key("backend", "memory", "<as much as the batch size needs, on a GPU what is free>"),
    key("backend", "chat_template", "<the model's default one>"),
    key("backend", "date", "\"26 Jul 2024\""),
];

const REMOTE: &[Key] = &[
    key("backend", "kind", NONE),
    key("backend", "model_id", NONE),
    key("backend", "endpoint_name", NONE),
    key("backend", "endpoint_namespace", "<the key's own account>"),
    key("backend", "base_url", "<Hugging Face's router>"),
    key("backend", "api_key", "<{ env = \"HF_TOKEN\" }, then the hub's token file>"),
    key("backend", "model_display_name", "<the endpoint's model, model_id, endpoint_name or base_url>"),
    key("backend", "endpoints_url", "\"https://api.endpoints.huggingface.cloud\""),
    key("backend", "hub_url", "<HF_ENDPOINT, else https://huggingface.co>"),
    key("backend", "resume_endpoint", "true"),
    key("backend", "endpoint_timeout", "900.0"),
    key("backend", "endpoint_poll", "5.0"),
    key("backend", "protocol", "\"chat\""),
    key("backend", "dialect", "<what an endpoint says of itself, else \"openai\">"),
    key("backend", "chat_template", NONE),
    key("backend", "http_version", "\"auto\""),
    key("backend", "headers", "{}"),
    key("backend", "extra_body", "{}"),
    key("backend", "native_n", "false"),
    key("backend", "stream", "false"),
    key("backend", "inline_images", "false"),
    key("backend", "shrink_to_pixels", NONE),
    key("backend", "response_format", NONE),
    key("backend", "tools", "[]"),
    key("backend", "tool_choice", NONE),
    key("backend", "tool_prompt", NONE),
    key("backend", "keep_reasoning", "false"),
    key("backend", "max_response_bytes", "\"64MiB\""),
    key("backend", "max_in_flight", "32"),
    key("backend", "adaptive", "true"),
    key("backend", "requests_per_minute", NONE),
    key("backend", "tokens_per_minute", NONE),
    key("backend", "max_attempts", "8"),
    key("backend", "max_elapsed", "900.0"),
    key("backend", "backoff_base", "0.5"),
    key("backend", "backoff_max", "60.0"),
    key("backend", "connect_timeout", "10.0"),
    key("backend", "first_byte_timeout", "300.0"),
    key("backend", "idle_timeout", "60.0"),
    key("backend", "total_timeout", "600.0"),
    key("backend", "spend_requests", NONE),
    key("backend", "spend_tokens", NONE),
];

const MOCK: &[Key] = &[
    key("backend", "kind", NONE),
    key("backend", "model_name", "\"mock\""),
    key("backend", "answer", "\"answer to row {row}\""),
    key("backend", "delays_ms", "[]"),
    key("backend", "service", NONE),
    key("backend", "window", "16"),
    key("backend", "input_tokens", "<words of the prompt>"),
    key("backend", "output_tokens", "<words of the answer>"),
    key("backend", "faults", "[]"),
    key("backend", "refuse", "[]"),
    key("backend", "ignores_cancel", "false"),
];

/// The keys of a backend's table; `None` for a kind that does not exist.
pub(crate) fn backend(kind: &str) -> Option<&'static [Key]> {
    match kind {
        "local" => Some(LOCAL),
        "inference-endpoints" => Some(REMOTE),
        "mock" => Some(MOCK),
        _ => None,
    }
}

/// The known name nearest to an unknown one, if any is near.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Hyphens for underscores are the commonest slip.
    let name = name.replace('-', "_").to_lowercase();
    known
        .into_iter()
        .map(|known| (strsim::damerau_levenshtein(&name, &known.replace('-', "_")), known))
        .filter(|(distance, known)| *distance <= known.len() / 3 + 1)
        .min()
        .map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each key is one that the backend knows, with the backend's default.
    #[test]
    fn the_remote_backends_keys_are_its_own() {
        use vgen_backends::remote::RemoteConfig;
        let config = serde_json::to_value(RemoteConfig::default()).unwrap_or_default();
        for name in config.as_object().into_iter().flat_map(|config| config.keys()) {
            assert!(REMOTE.iter().any(|key| key.name == name), "{name} can't be set");
        }
        for key in REMOTE.iter().filter(|key| !["kind", "chat_template"].contains(&key.name)) {
            let own = config.get(key.name);
            assert!(own.is_some(), "{} is no key", key.name);
            if !key.default.starts_with('<') && key.name != "max_response_bytes" {
                assert_eq!(own.map(ToString::to_string).as_deref(), Some(key.default), "{}", key.name);
            }
        }
    }

    #[test]
    fn near_names_are_found_and_far_ones_are_not() {
        let names = || KEYS.iter().filter(|key| key.table == "sampling").map(|key| key.name);
        assert_eq!(nearest("temprature", names()), Some("temperature"));
        assert_eq!(nearest("max-new-tokens", names()), Some("max_new_tokens"));
        assert_eq!(nearest("quux_frobnicate", names()), None);
    }
}
