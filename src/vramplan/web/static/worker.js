// Python in a worker of an exported copy of the site: an address comes in, and what a server would have said goes out.
import { loadPyodide } from "../python/pyodide.mjs";

const here = new URL("..", import.meta.url), fetched = self.fetch.bind(self);
let loaded = 0;
self.fetch = async (...asked) => {
  const reply = await fetched(...asked);
  if (!reply.ok) postMessage({ failed: `${reply.url} is not there` });
  const counted = new TransformStream({ transform(piece, out) { postMessage({ loaded: loaded += piece.byteLength }); out.enqueue(piece); } });
  return new Response(reply.body.pipeThrough(counted), reply);
};

// The worker's name is that of the archive of packages.
async function load() {
  new WebAssembly.Module(Uint8Array.of(0, 97, 115, 109, 1, 0, 0, 0)); // the empty one: says why, where the host's own policy forbids it
  const packages = fetch(new URL(self.name, here)).then((reply) => reply.arrayBuffer());
  const python = await loadPyodide({ indexURL: new URL("python/", here).href });
  python.unpackArchive(await packages, "wheel");
  const reply = python.pyimport("vramplan.web.browser").reply;
  return (path, query, body) => {
    const found = reply(path, query, body && python.toPy(new Uint8Array(body)), here.pathname);
    const [status, kind, text] = found.toJs();
    found.destroy();
    return { status, kind, text };
  };
}

const python = load();
python.then(() => postMessage({ ready: true }), (error) => postMessage({ failed: String(error) }));
self.onmessage = async ({ data: { path, query, body } }) => {
  try {
    postMessage((await python)(path, query, body));
  } catch (error) {
    postMessage({ error: String(error) });
  }
};
