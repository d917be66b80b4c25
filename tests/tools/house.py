"""The second suite of light.py: blinds, heating, timers, music, locks and a shopping list, by which the form was chosen that models are
told of tools in. The fifty phrasings of light.py were not looked at for that. `suites()` gives (name, system's turn, tools, [(text, the
call that is right)]).
"""


def fn(name, description, /, **properties):
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def en(description, *values):
    return {"type": "string", "enum": list(values), "description": description}


def integer(description):
    return {"type": "integer", "description": description}


def string(description):
    return {"type": "string", "description": description}


def c(name, /, **arguments):
    return {"name": name, "arguments": arguments}


def suites():
    R=["study","nursery","attic","lounge"]
    t=[fn("move_blind","Open or close a blind.",blind=en("Which blind",*R),position=en("open or closed","open","closed")),
       fn("check_window","Tell whether a window is open.",window=en("Which window",*R))]
    q=[]
    for i,(p,pos) in enumerate([("Open the {} blind.","open"),("Close the {} blind.","closed"),("Please close the blind in the {}.","closed"),
        ("Could you open the {} blind?","open"),("{} blind closed, please.","closed"),("The sun blinds me in the {}, close the blind.","closed"),
        ("I want to look out of the {}. Open the blind.","open"),("Blind open in the {}.","open"),("Let some sun into the {}: open the blind.","open"),
        ("Can you shut the blind of the {}?","closed"),("Would you close the {} blind?","closed"),("Make the {} blind open.","open")]):
        r=R[(i+i//4)%4]; q.append((p.format(r),c("move_blind",blind=r,position=pos)))
    for i,p in enumerate(["Is the {} window open?","Did I leave the window in the {} open?","Tell me if the {} window is closed.","Check the window of the {}."]):
        r=R[i]; q.append((p.format(r),c("check_window",window=r)))
    yield "blinds","You look after a house. Use the tools.",t,q

    R=["cellar","workshop","office","guest room"]
    t=[fn("set_fan","Set the speed of a fan.",fan=en("Which fan",*R),speed=en("How fast","off","low","medium","high")),
       fn("set_heating","Set the temperature that a room is heated to.",room=en("Which room",*R),degrees=integer("Degrees Celsius"))]
    q=[]
    for i,(p,s) in enumerate([("Set the {} fan to low.","low"),("Turn the fan in the {} to high.","high"),("{} fan to medium.","medium"),
        ("Switch the {} fan off.","off"),("Please run the {} fan on high.","high"),("It is stuffy in the {}, put the fan on medium.","medium"),
        ("Can you turn off the {} fan?","off"),("I would like the fan of the {} on low.","low")]):
        r=R[(i+i//4)%4]; q.append((p.format(r),c("set_fan",fan=r,speed=s)))
    for i,(p,d) in enumerate([("Heat the {} to 21 degrees.",21),("Set the heating in the {} to 18 degrees.",18),("I am cold. Make the {} 23 degrees warm.",23),
        ("{} to 19 degrees, please.",19),("Please set the temperature of the {} to 20.",20),("Could you heat the {} to 17 degrees?",17)]):
        r=R[(i+1)%4]; q.append((p.format(r),c("set_heating",room=r,degrees=d)))
    yield "heating","You are a helpful assistant in a house.",t,q

    R=["tea","pasta","eggs","laundry"]
    t=[fn("start_timer","Start a timer.",name=en("What the timer is for",*R),minutes=integer("Minutes")),
       fn("cancel_timer","Cancel a timer that runs.",name=en("Which timer",*R))]
    q=[]
    for i,(p,m) in enumerate([("Start a timer of 5 minutes for the {}.",5),("Set the {} timer to 12 minutes.",12),("{} timer, 8 minutes.",8),
        ("Remind me of the {} in 40 minutes.",40),("Please time the {} for 7 minutes.",7),("The {} needs 15 minutes, start a timer.",15)]):
        r=R[(i+i//4+1)%4]; q.append((p.format(r),c("start_timer",name=r,minutes=m)))
    for i,p in enumerate(["Cancel the {} timer.","Stop the timer for the {}.","I do not need the {} timer any more, cancel it.","Delete the timer of the {}, please."]):
        r=R[(i+1)%4]; q.append((p.format(r),c("cancel_timer",name=r)))
    yield "timers","",t,q

    R=["bathroom","terrace","dining room","basement"]
    G=["jazz","rock","classical","folk"]
    t=[fn("stop_music","Stop the music in a room.",room=en("Which room",*R)),
       fn("play_music","Play music of a genre in a room.",genre=en("What kind of music",*G),room=en("Where",*R))]
    q=[]
    for i,p in enumerate(["Play {g} in the {r}.","Please play some {g} music in the {r}.","I want to hear {g} in the {r}.","{g} in the {r}, please.",
        "Put on {g} music in the {r}.","Could you play {g} in the {r}?","Let us have some {g} in the {r}.","In the {r} play {g}.","Start {g} music in the {r}.","We dance in the {r}, play {g}."]):
        r=R[(i+i//4)%4]; g=G[(3*i+1+i//4)%4]; q.append((p.format(r=r,g=g),c("play_music",genre=g,room=r)))
    for i,p in enumerate(["Stop the music in the {}.","Turn off the music in the {}, please.","No more music in the {}.","Quiet in the {}: stop the music."]):
        r=R[i]; q.append((p.format(r),c("stop_music",room=r)))
    yield "music","You control the loudspeakers of a house. Call the tool that does what is asked.",t,q

    R=["front","back","cellar","shed"]
    t=[fn("read_battery","Read the battery of a lock.",door=en("Which door",*R)),
       fn("set_lock","Lock or unlock a door.",door=en("Which door",*R),state=en("locked or unlocked","locked","unlocked"))]
    q=[]
    for i,(p,s) in enumerate([("Lock the {} door.","locked"),("Unlock the {} door.","unlocked"),("Please lock the {} door.","locked"),
        ("Could you unlock the {} door?","unlocked"),("{} door locked, please.","locked"),("I am at the {} door, unlock it.","unlocked"),
        ("We are going to bed, lock the {} door.","locked"),("Set the {} door to unlocked.","unlocked"),("Would you lock the {} door for me?","locked"),("Unlock the door of the {}.","unlocked")]):
        r=R[(i+i//4)%4]; q.append((p.format(r),c("set_lock",door=r,state=s)))
    for i,p in enumerate(["How full is the battery of the {} door?","Read the battery of the {} door.","Does the lock of the {} door need a new battery?"]):
        r=R[(i+1)%4]; q.append((p.format(r),c("read_battery",door=r)))
    yield "locks","You control the doors of a house.",t,q

    # More values than examples.
    R=["printer","heater","radio","lamp","charger","freezer"]
    t=[fn("switch_socket","Switch a socket on or off.",socket=en("Which socket",*R),state=en("on or off","on","off")),
       fn("read_power","Read how much power a socket uses.",socket=en("Which socket",*R))]
    q=[]
    for i,(p,s) in enumerate([("Switch the {} socket on.","on"),("Switch off the socket of the {}.","off"),("Please cut the power of the {}.","off"),
        ("Could you switch the {} socket off?","off"),("{} socket on, please.","on"),("I need the {}, switch its socket on.","on"),
        ("The {} is not needed any more, switch it off.","off"),("Give power to the {}.","on"),("Socket of the {}: off.","off"),
        ("Would you turn the {} socket on?","on"),("Power off the {}.","off"),("The {} should be on.","on")]):
        r=R[(i+i//6)%6]; q.append((p.format(r),c("switch_socket",socket=r,state=s)))
    for i,p in enumerate(["How much power does the {} use?","Read the power of the {} socket.","What does the {} draw?"]):
        r=R[(2*i+1)%6]; q.append((p.format(r),c("read_power",socket=r)))
    yield "sockets","You look after the sockets of a house.",t,q

    R=["den","pantry","loft","porch","landing"]
    t=[fn("clean_room","Let the robot clean a room.",room=en("Which room",*R)),
       fn("set_camera","Turn a camera on or off.",camera=en("Which camera",*R),state=en("on or off","on","off")),
       fn("count_people","Count the people in a room.",room=en("Which room",*R))]
    q=[]
    for i,p in enumerate(["Clean the {}.","Please let the robot clean the {}.","The {} is dirty, clean it.","Vacuum the {}.","Could you have the {} cleaned?"]):
        r=R[(2*i)%5]; q.append((p.format(r),c("clean_room",room=r)))
    for i,(p,s) in enumerate([("Turn on the {} camera.","on"),("Camera in the {} off, please.","off"),("Switch the {} camera off.","off"),
        ("I want to see the {}, turn the camera on.","on"),("Stop filming the {}.","off"),("Please turn the camera of the {} on.","on")]):
        r=R[(2*i+1)%5]; q.append((p.format(r),c("set_camera",camera=r,state=s)))
    for i,p in enumerate(["How many people are in the {}?","Is anybody in the {}? Count the people.","Count the people in the {}."]):
        r=R[(i+2)%5]; q.append((p.format(r),c("count_people",room=r)))
    yield "robot","",t,q

    t=[fn("add_item","Add an item to the shopping list.",item=string("What to buy")),
       fn("set_volume","Set the volume of the radio.",volume=integer("From 0 to 10"))]
    q=[(p.format(r),c("add_item",item=r)) for p,r in [("Add {} to the shopping list.","milk"),("Put {} on my list.","bananas"),("We need {}.","butter"),("Please add {} to the list.","coffee"),("Write {} on the shopping list.","potatoes")]]
    q+=[(p,c("set_volume",volume=v)) for p,v in [("Set the volume to 3.",3),("Radio volume 7.",7),("Turn the radio up to 9.",9),("Please turn the volume down to 2.",2)]]
    yield "free","",t,q
