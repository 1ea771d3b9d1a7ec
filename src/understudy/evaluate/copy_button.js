// A button beside each command of a report. It is made here, so that there is none where scripts do not run.
for(const command of document.querySelectorAll(".commands pre")){
 const button=document.createElement("button");
 button.type="button";button.textContent="copy";button.setAttribute("aria-label","copy the command");
 button.onclick=async()=>{
  try{await navigator.clipboard.writeText(command.textContent);button.textContent="copied"}
  catch{getSelection().selectAllChildren(command);button.textContent="selected"}
  setTimeout(()=>button.textContent="copy",1500)};
 command.after(button)}
