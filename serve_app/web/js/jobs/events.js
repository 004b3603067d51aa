/** Server-sent events over fetch: the browser's own EventSource cannot send the key. */

/**
 * @param {import("../api.js").Api} api @param {string} path  With the prefix. @param {AbortSignal} signal
 * @returns {AsyncGenerator<{event: string, data: any}>}  Ends with the stream.
 */
export async function* events(api, path, signal) {
    const response = await api.fetch(path, { signal, headers: { Accept: "text/event-stream" } });
    if (!response.body) return;
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let kept = "";
    try {
        for (;;) {
            const { value, done } = await reader.read();
            if (done) return;
            kept += value;
            const parts = kept.split("\n\n");
            kept = parts.pop() ?? "";
            for (const part of parts) {
                const lines = part.split("\n");
                const data = lines.filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim()).join("\n");
                const event = lines.find((line) => line.startsWith("event:"))?.slice(6).trim() ?? "message";
                if (data) yield { event, data: JSON.parse(data) };
            }
        }
    } finally {
        await reader.cancel().catch(() => {});
    }
}
