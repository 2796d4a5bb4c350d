// SPDX-License-Identifier: Apache-2.0
// Search in pages that are read from a folder: browsers start no Worker at a file: address, so its program runs in a
// hidden frame. The theme would load a script with this purpose from another host.
(() => {
  if (location.protocol !== "file:") return;

  class IFrameWorker extends EventTarget {
    constructor(address) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.append(this.frame);
      const inside = this.frame.contentWindow;
      const load = (source) =>
        new Promise((resolve, reject) => {
          const script = inside.document.createElement("script");
          script.src = new URL(source, address).href;
          script.onload = resolve;
          script.onerror = () => reject(new Error(`${source} cannot be loaded`));
          inside.document.head.append(script);
        });
      // what the program calls: messages go to the page, scripts are loaded one after the other
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      inside.importScripts = async (...sources) => {
        for (const source of sources) await load(source);
      };
      this.ready = load(address);
      this.ready.catch((error) => this.dispatchEvent(new ErrorEvent("error", { error })));
    }

    postMessage(data) {
      const inside = this.frame.contentWindow;
      this.ready.then(() => inside.dispatchEvent(new inside.MessageEvent("message", { data })));
    }

    terminate() {
      this.frame.remove();
    }
  }

  // the theme's program looks for this name in its parent
  window.IFrameWorker = IFrameWorker;
  window.Worker = class extends IFrameWorker {
    constructor(address) {
      super(new URL(address, location.href).href);
    }
  };
})();
